"""What the evaluation is sized by. The memory plan counts with the same numbers, and must not import faiss."""

EVALUATION_BATCH = 256  # images that go through the network together
RAW_SIDE = 32  # larger images are averaged down to this side before pixels are compared
VOTE_BYTES = 1 << 26  # most memory in which votes are compared
QUERIES_AT_ONCE = 256  # whose votes are compared together, where they fit
PAIR_BYTES = 9  # of two neighbours that are compared: a weight, and whether their labels are equal
