"""One file a job; here, what `launch.py --help` says of them."""

JOBS = {
    "pretrain": "train; the same command again goes on (the default)",
    "index": "list the images once, into data.index; again: add what is new",
    "knn": "evaluate the saved backbone of a run again",
    "linear": "train a linear classifier on the features of a saved backbone, and test it",
    "export": "write backbone, embeddings and rows of the newest checkpoint",
    "plan": "what a run would take, and the largest sizes that fit",
    "profile": "train some hundred steps, and tell what memory they took beside the plan",
    "store": "look after the rows on the disk: inspect, verify, scrub, repair, export or digest, as store.verb says",
    "scale": "run every cell of scale.grid in a process of its own, and compare what they cost",
    "peer": "train a rival on the same features, as scale.peer says",
}
_EXAMPLES = (
    "configs/pic_sampled.json",
    "configs/photos.json output=runs/photos data.root=/path/to/images",
    "configs/photos.json output=runs/photos data.root=/path/to/images job=export",
)


def help_text() -> str:
    """The jobs and three examples, below the options of `launch.py --help`."""
    jobs = "\n".join(f"  job={name:9} {what}" for name, what in JOBS.items())
    examples = "\n".join(f"  launch.py --config {words}" for words in _EXAMPLES)
    return f"jobs:\n{jobs}\n\nexamples:\n{examples}"
