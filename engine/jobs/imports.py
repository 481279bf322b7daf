"""What a run imports, before and after its loader forks its workers.

Imports take tens of seconds on a cold machine and hundreds of MB in all. A run makes them at these two places, so that the memory plan
can measure what they take (engine/planning/resident.py). DeepSpeed, faiss and zarr start threads, or hang in forked processes.
"""

from importlib import import_module

from configs import schema
from configs.methods import REGISTRY

_OTHER_FILES = {"zip": "zip_images"}  # sources whose file in datasets has another name

# torch imports these at its first backward pass, with its first optimizer, and in DeepSpeed's first engine.
_OF_THE_FIRST_STEP = ("torch.fx.experimental.symbolic_shapes", "torch._dynamo", "torch._inductor.compile_fx")


def import_early(config: schema.Config) -> None:
    """What opens and changes images, and the network's library; no threads come with them."""
    if config.backbone.is_given:
        return
    augmentation = "datasets.grey" if config.data.augment.kind == "grey" else "datasets.photos"
    source = config.data.source
    for name in (
        f"datasets.{_OTHER_FILES.get(source, source)}",
        augmentation,
        "datasets.probes",
        "engine.trunk.network",
    ):
        import_module(name)
    import_module("engine.trunk.backbones").library_of(config.backbone.name)


def import_late(config: schema.Config) -> None:
    """All the rest: of the store, the method, the run and what it tells people; of the trunk and its evaluation."""
    names = ["engine.jobs.row_table", "engine.planning.measured", REGISTRY[config.method.kind][1]]
    if not config.backbone.is_given:
        names += ["engine.trunk.trunk", "engine.evaluation.nearest", "engine.evaluation.views", *_OF_THE_FIRST_STEP]
    for name in names:
        import_module(name)
