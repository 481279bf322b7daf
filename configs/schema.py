"""What a config may say: every key, its type, its default and its meaning, checked before anything heavy is imported.

A config is one JSON file; `section.key=value` words after it override single keys. Unknown keys are refused with the
nearest known one. What can only be known once the images are counted (does W fit N, does the shrink over one gap
underflow) is checked where the count is known, before anything is written.
"""

import difflib
import json
from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)

from configs.augment import KINDS
from configs.data import Data
from configs.earlier import completed, flat, translated
from configs.fields import AboveZero, Few, Positive, Processes, Section, Text, Width
from configs.linear import Linear
from configs.methods import DEFAULT_KIND, REGISTRY, MethodSettings, Pic, RowTableSettings, validated
from configs.optimizer import Optimizer, check_optimizer
from configs.scale import Scale
from configs.texts import at_home, put_words, read_tree
from datasets.shown import cut_text

OwnPath = Annotated[Text, AfterValidator(at_home)]  # of output and backbones; what data names the rooms of data open


class Schedule(Section):
    """Null sizes are chosen once the images are counted (datasets/size_choice.py), and are numbers from then on."""

    batch: Positive = 256  # G, instances of an optimizer step over all ranks and micro-batches
    micro_batches: Positive = 1  # A, forward and backward passes that the batch is split into
    window: Positive | None = None  # W, positions; null: a whole pass of up to 131,072 images, 131,072 of more
    # S, positions by which the window slides; null: the window, or an eighth of one that is chosen
    stride: Positive | None = None
    # C, positions of a block; null: 64, or 1,024 for more than 131,072 images, or what fits
    block: Positive | None = None
    # L, the largest number of ranks; null: 8, or the largest of 4, 2 and 1 that fits the batch
    lanes: Positive | None = None
    reshuffle: bool = True  # permute whole stripes anew in each pass


def _some_width(layers: tuple[int | str, ...]) -> tuple[int | str, ...]:
    if not any(isinstance(layer, int) for layer in layers):
        raise ValueError(f"{list(layers)} has no convolution; add at least one width")
    return layers


Deviation = Annotated[float, Field(gt=0, lt=10)]
Mean = Annotated[float, Field(gt=-10, lt=10)]
Statistics = tuple[tuple[Mean, Mean, Mean], tuple[Deviation, Deviation, Deviation]]
Layers = Annotated[tuple[Width | Literal["M"], ...], AfterValidator(_some_width)]


class Backbone(Section):
    # A torchvision classification model, one of timm as "timm/resnet50d", "vgg" with layers, or "given": features without a network.
    name: Text = "resnet18"
    stem: Literal["imagenet", "small"] = "imagenet"  # of ResNets; small: one 3x3 convolution, and nothing is halved
    # vgg: widths of its 3x3 convolutions, "M" = halve the image
    layers: Layers | None = None
    grid: Few = 2  # vgg: features are averaged over grid x grid cells of the image
    # Between the features that people keep and z: engine/trunk/heads.py.
    head: Literal["linear", "mlp", "mlp_bn2", "mlp_bn3"] = "mlp"
    hidden: Width = 512  # width of the head's hidden layers

    @property
    def is_given(self) -> bool:
        """Whether there is no network, and features come from datasets/given.py."""
        return self.name == "given"


# By the class of its kind, which is looked up when a config is read; written with all keys of that class.
Method = Annotated[SerializeAsAny[MethodSettings], BeforeValidator(validated)]


class Store(Section):
    """Where blocks go that have left the window, and what job store does with them."""

    kind: Literal["memory", "zarr"] = "zarr"  # in host memory, or on disk
    dtype: Literal["float32", "bfloat16"] = "float32"  # zarr: of weight and momentum of blocks that have left
    fold: bool = False  # one vector instead of two for rows that stay away long enough
    read_ahead: Few = 1  # zarr: slides of the window by which blocks are read before they are needed
    write_behind: Positive | None = None  # zarr: blocks that may wait to be written; null: those of two slides
    verb: Literal["inspect", "verify", "scrub", "repair", "export", "digest"] = "inspect"  # what job store does
    step: Annotated[int, Field(ge=0, le=2**53)] | None = (
        None  # job store: the checkpoint of this step; null: the newest
    )
    format: Literal["npy", "zarr"] = "npy"  # job store, verb export: of the rows

    @model_validator(mode="after")
    def _memory_keeps_every_bit(self) -> "Store":
        if self.kind == "memory" and self.dtype != "float32":
            raise ValueError("bfloat16 is for rows on disk; set store.kind to zarr or store.dtype to float32")
        return self


class Checkpoint(Section):
    every_steps: Positive = 500
    keep: Few = 2


class Ranks(Section):
    """Several ranks; how many there are is the launcher's business."""

    timeout_seconds: AboveZero = 120.0  # without a sign of life, or in one exchange, after which a rank is lost
    patience_seconds: AboveZero = 7200.0  # while one rank decodes, compiles or writes and the others wait
    own_disks: bool = False  # every node has a disk of its own at `output`; false: they share one


class Evaluate(Section):
    every_steps: Positive | None = None  # null: at the end only
    k: Positive = 20  # neighbours that vote
    temperature: AboveZero = 0.07  # a neighbour's vote weighs exp(similarity / temperature)
    more_k: tuple[Positive, ...] = ()  # other numbers of neighbours, for a grid of figures beside the headline
    more_temperatures: tuple[AboveZero, ...] = ()  # the same of temperatures; the grid has every k with every one
    features: Literal["backbone", "head"] = "backbone"
    gallery: Text = "DejaVu Sans"  # glyphs: the font family whose letters are searched
    # jobs knn, linear, export: a file of weights (engine/trunk/foreign_weights.py); null: the output directory's own
    backbone: OwnPath | None = None
    # of evaluate.backbone: mean and deviation of each channel, by which images are normalised; null: as the file or its library says
    statistics: Statistics | None = None
    limit: Positive = 10000  # most images of a gallery; of more a fair sample by label is taken
    query_limit: Positive = 10000  # most images of each set of queries
    jittered: bool = False  # labelled images are asked a second time, as random views of them
    views: Annotated[int, Field(ge=0, le=2**20)] = (
        512  # images whose random views are compared, without labels; 0: none
    )
    online_probe: bool = (
        False  # while training, a linear classifier of labels on the features; changes nothing of the run
    )
    tensorboard: bool = False  # also write TensorBoard events into the output directory


class Fit(Section):
    """What there is, in GiB; null: any."""

    device_gib: AboveZero | None = None  # memory of one device, a GPU
    host_gib: AboveZero | None = None  # host memory of one machine
    disk_gib: AboveZero | None = None


class Plan(Section):
    """What the plan is made for, and what job plan is asked."""

    step_seconds: AboveZero | None = None  # of a step: then the plan tells bandwidth and days
    refuse: bool = True  # a run that begins, and would take more memory than there is
    ranks: Positive = 1  # job plan: ranks of the run that is planned
    machines: Positive = 1  # job plan: over which the ranks are spread evenly
    fit: Fit = Fit()  # job plan: the largest sizes that fit into this are looked for


class Profile(Section):
    """What job profile looks at, and how often."""

    steps: Positive = 300  # of the run that is watched
    every_seconds: AboveZero = 0.05  # between two samples of memory


class Config(Section):
    job: Literal["pretrain", "index", "knn", "linear", "export", "store", "plan", "profile", "scale", "peer"] = (
        "pretrain"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    output: OwnPath
    epochs: AboveZero  # images seen / N: the length of the schedules
    steps: Positive | None = None  # stop there; the schedules' length does not change
    log_every: Positive = 20
    threads: Annotated[Processes, Field(ge=1)] | None = None  # CPU threads of the step; null: as many as cores
    data: Data
    schedule: Schedule = Schedule()
    backbone: Backbone = Backbone()
    method: Method = Pic()
    optimizer: Optimizer = Optimizer()
    store: Store = Store()
    checkpoint: Checkpoint = Checkpoint()
    evaluate: Evaluate = Evaluate()
    linear: Linear = Linear()
    ranks: Ranks = Ranks()
    plan: Plan = Plan()
    profile: Profile = Profile()
    scale: Scale = Scale()
    deepspeed: dict[str, Any] = Field({})  # ZeRO stage, offload, precision, communication: DeepSpeed's own words

    @field_validator("deepspeed")
    @classmethod
    def _engine_owns_these(cls, block: dict[str, Any]) -> dict[str, Any]:
        for key in ENGINE_OWNS:
            if key in block:
                raise ValueError(f"deepspeed.{key} is not to be set here; set {ENGINE_OWNS[key]} instead")
        interval = block.get("steps_per_print")
        if interval is not None and (type(interval) is not int or interval < 1):
            raise ValueError(
                f"deepspeed.steps_per_print is {json.dumps(interval)}; set it to a whole number, or to null"
            )
        for key in block:
            if key not in DEEPSPEED_KEYS:  # DeepSpeed itself ignores what it does not know
                nearest = difflib.get_close_matches(key, DEEPSPEED_KEYS, n=1, cutoff=0.0)[0]
                raise ValueError(f"unknown key deepspeed.{key}; the nearest known one is deepspeed.{nearest}")
        return block

    @model_validator(mode="after")
    def _method_takes_it(self) -> "Config":
        self.method.check(self)
        check_optimizer(self)
        if self.evaluate.statistics and self.evaluate.backbone is None:
            raise ValueError("evaluate.statistics is for evaluate.backbone, which is null; set both, or neither")
        if self.evaluate.online_probe and self.backbone.is_given:
            raise ValueError(
                'evaluate.online_probe looks at the features of a network, and backbone.name "given" has none; set it to false'
            )
        if self.evaluate.jittered and self.data.sides[0] != self.data.image_size:
            raise ValueError(
                f"evaluate.jittered asks by the first crop of data.augment, whose side is {self.data.sides[0]}, and data.image_size is "
                f"{self.data.image_size}; set one to the other, or evaluate.jittered to false"
            )
        return self

    def with_sizes(self, sizes: dict[str, int | None]) -> "Config":
        """The same config with other sizes of the order and the rows: "window", "stride", "block", "lanes", "active"."""
        of_schedule = {name: value for name, value in sizes.items() if name != "active"}
        changes: dict[str, Any] = {"schedule": self.schedule.model_copy(update=of_schedule)}
        if "active" in sizes and self.method.has_rows:
            changes["method"] = self.method.model_copy(update={"active": sizes["active"]})
        return self.model_copy(update=changes)

    @property
    def rows(self) -> RowTableSettings:
        """The settings of the method, where it keeps rows. ValueError where it does not."""
        if not self.method.has_rows:
            having = ", ".join(kind for kind, (settings, _) in REGISTRY.items() if settings.has_rows)
            raise ValueError(f"method {self.method.kind} has no rows; set method.kind to one that has them ({having})")
        return cast("RowTableSettings", self.method)


# Keys of DeepSpeed's config that the engine writes, and what a user sets in their place.
ENGINE_OWNS = {
    "optimizer": "the optimizer section",
    "scheduler": "optimizer.lr, schedule and warmup_epochs",
    "train_batch_size": "schedule.batch",
    "train_micro_batch_size_per_gpu": "schedule.batch and schedule.micro_batches",
    "gradient_accumulation_steps": "schedule.micro_batches",
    "gradient_clipping": "optimizer.clip",
    "zero_allow_untested_optimizer": "nothing",
    "zero_force_ds_cpu_optimizer": "nothing",
    "sparse_gradients": "nothing",
    # These cast batch normalisation too, and leave images in float32.
    "bf16": "deepspeed.torch_autocast",
    "fp16": "deepspeed.torch_autocast",
}

# The rest of DeepSpeed's top level that makes sense here; what stands inside them DeepSpeed checks itself.
DEEPSPEED_KEYS = (
    "zero_optimization",
    "torch_autocast",
    "communication_data_type",
    "prescale_gradients",
    "gradient_predivide_factor",
    "aio",
    "comms_logger",
    "flops_profiler",
    "activation_checkpointing",
    "memory_breakdown",
    "wall_clock_breakdown",
    "steps_per_print",
)

# Keys that may differ when a run is continued; a trailing dot means the whole section.
MAY_DIFFER = (
    *(
        "job",
        "steps",
        "log_every",
        "threads",
        "output",
        "checkpoint.",
        "evaluate.",
        "linear.",
        "ranks.",
        "plan.",
        "profile.",
        "scale.",
    ),
    # Whether the images are the same is told by their fingerprint, wherever they lie and whatever names them.
    *("data.root", "data.labels", "data.exclude", "data.limit", "data.workers"),
    *("data.index", "data.rescan", "data.hash", "data.cache", "data.cache_of", "data.cache_gib"),
    *("data.on_unreadable", "data.max_unreadable", "data.patience_seconds"),
    *("store.kind", "store.read_ahead", "store.write_behind", "store.verb", "store.step", "store.format"),
    # These print, and compute nothing.
    *("deepspeed.steps_per_print", "deepspeed.wall_clock_breakdown", "deepspeed.memory_breakdown"),
    *("deepspeed.comms_logger.", "deepspeed.flops_profiler."),
    # How ranks share out the trunk: all compute the same, in other orders of sums.
    "deepspeed.zero_optimization.stage",
)


def load(path: str, overrides: list[str]) -> Config:
    """Read a config file, apply `section.key=value` overrides, and check everything.

    A value is read as JSON where it is JSON (0.1, true, null, [1, 2]) and as a string where it is not. File and overrides may
    have the names of earlier versions (configs/earlier.py).
    Raises ValueError with at most three lines: what is wrong, the value, and what to change.
    """
    return _checked(read_tree(path, overrides, translated))


def with_words(config: Config, words: list[str]) -> Config:
    """`config` with `section.key=value` words, which are read and checked as `load` does it. Raises ValueError as it does."""
    tree = json.loads(config.model_dump_json())
    put_words(tree, words, translated)
    return _checked(tree)


def _checked(tree: dict[str, Any]) -> Config:
    try:
        return Config.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise ValueError(_explain(error, tree)) from None


def refuse_other_run(config: Config, saved: dict[str, Any]) -> None:
    """ValueError where a run with the config `saved`, of this version or an earlier one, cannot go on with `config`.

    A key that `saved` lacks was not there when it was written: the run had what is now the key's default.
    """
    try:
        saved = translated(saved)
    except ValueError as error:
        raise ValueError(
            f"{config.output} holds a run whose config cannot be read: {error}; choose another output, or start over with --fresh"
        ) from None
    # Before there were kinds all runs were of this one, whatever is asked for now.
    if isinstance(saved.get("method"), dict):
        saved = {**saved, "method": {"kind": DEFAULT_KIND, **saved["method"]}}
    now, then = flat(json.loads(config.model_dump_json())), flat(completed(saved, config))
    may_differ = (*MAY_DIFFER, *(f"method.{key}" for key in config.method.may_differ))
    # The kind first: where it differs, so do all keys that one of the two has.
    for key in sorted(now.keys() | then.keys(), key=lambda key: (key != "method.kind", key)):
        free = any(key == may or (may.endswith(".") and key.startswith(may)) for may in may_differ)
        if not free and now.get(key) != then.get(key):
            before, asked = (cut_text(json.dumps(values.get(key))) for values in (then, now))
            raise ValueError(
                f"{config.output} holds a run with {cut_text(key)} = {before}, now it is {asked}; "
                "set it back, choose another output, or start over with --fresh"
            )


def _explain(error: ValidationError, tree: dict[str, Any]) -> str:
    """The first mistake of a config in one line."""
    first = error.errors()[0]
    # A discriminated union puts its tag ("grey") into the location; it is not a key that anyone wrote.
    parts = [str(part) for part in first["loc"] if part not in KINDS]
    where = cut_text(".".join(parts))
    if first["type"] == "extra_forbidden":
        section = tree.get("method", {})
        known = _known_keys(section.get("kind", DEFAULT_KIND) if isinstance(section, dict) else DEFAULT_KIND)
        alike = [
            key for key in known if key.rpartition(".")[2] == where.rpartition(".")[2]
        ]  # only the section is wrong
        if "." not in where and len(alike) > 1:  # any of them may be meant
            return f"unknown key {where}; the nearest known ones are {', '.join(alike)}"
        nearest = difflib.get_close_matches(where, alike or known, n=1, cutoff=0.0)[0]
        return f"unknown key {where}; the nearest known one is {nearest}"
    if first["type"] == "missing":
        return f"the config lacks {where}; add it"
    message = cut_text(first["msg"].removeprefix("Value error, "), 240)
    if first["type"] == "value_error":
        return message if not where or message.startswith(where) else f"{where}: {message}"
    value = cut_text(json.dumps(first["input"], ensure_ascii=False, default=str))
    return f"{where} is {value}: {message[0].lower() + message[1:]}"


def _known_keys(kind: str | None = None) -> list[str]:
    """Every key; of methods those of one kind, or of all."""
    methods = [settings for name, (settings, _) in REGISTRY.items() if kind is None or name == kind]
    keys: dict[str, None] = {}  # methods have keys in common

    def walk(model: type[BaseModel], prefix: str) -> None:
        for name, field in model.model_fields.items():
            keys[prefix + name] = None
            for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
                for section in methods if part is MethodSettings else [part]:
                    if isinstance(section, type) and issubclass(section, BaseModel):
                        walk(section, f"{prefix}{name}.")

    walk(Config, "")
    return list(keys)
