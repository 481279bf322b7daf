"""What the evaluation is sized by. The memory plan counts with the same numbers, and must not import faiss."""

EVALUATION_BATCH = 256  # images that go through the network together
RAW_SIDE = 32  # larger images are averaged down to this side before pixels are compared
SPECTRUM_ROWS = 4096  # features that are added together to the matrix of which RankMe takes the eigenvalues
VOTE_BYTES = 1 << 26  # most memory in which votes are compared
QUERIES_AT_ONCE = 256  # whose votes are compared together, where they fit
PAIRS_AT_ONCE = 1 << 20  # of views and of what they are compared with, in figures without labels
PAIR_BYTES = 9  # of two neighbours that are compared: a weight, and whether their labels are equal
SEARCH_BYTES = 1 << 28  # most memory of the neighbours of the queries that are searched together
NEIGHBOUR_BYTES = 20  # of a neighbour: similarity, index, label
GPU_NEIGHBOURS = 2048  # the most that FAISS finds on a GPU
GPU_SCRATCH_BYTES = 1 << 26  # what FAISS may take of a GPU beside its index
