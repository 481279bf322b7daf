"""From a config to the objects that any method needs, each made of the sections that name it.

The rooms take what they need, one argument each, and know nothing of configs; here the keys become those arguments. torchvision, deepspeed
and faiss are imported where they are used: they take long, and start threads, and the loader forks its workers before. A run with
features that are given needs none of them.
"""

import os
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from configs import schema
from datasets.drawn_views import drawn_views
from datasets.loader import Augmentation
from datasets.schedule import Schedule
from datasets.shown import shown
from datasets.source import Source
from engine.jobs import sizes
from engine.ranks.ranks import Channel, Ranks
from engine.training.learning_rate import learning_rate, stepped_rate
from engine.trunk.given import GivenTrunk

if TYPE_CHECKING:
    from engine.evaluation.evaluate import Protocol
    from engine.evaluation.views import ViewEvaluator
    from engine.methods.method import ActiveVectors
    from engine.training.online_probe import OnlineProbe
    from engine.trunk.network import Network
    from engine.trunk.optimizers import Rule
    from engine.trunk.trunk import Trunk


def use_threads(config: schema.Config, processes_here: int = 1) -> None:
    """Tell torch how many threads to take: those of the config, or this process's share of the machine's cores."""
    torch.set_num_threads(config.threads or max(1, (os.cpu_count() or 1) // processes_here))


def protocol_of(config: schema.Config) -> "Protocol":
    from engine.evaluation.evaluate import Asked, Protocol

    asked = config.evaluate
    ways = product((asked.k, *asked.more_k), (asked.temperature, *asked.more_temperatures))
    more = tuple(Asked(*way) for way in dict.fromkeys(ways) if way != (asked.k, asked.temperature))
    return Protocol(asked.k, asked.temperature, asked.features, asked.limit, asked.query_limit, more)


def view_evaluator(
    config: schema.Config,
    source: Source,
    augmentation: Augmentation,
    ranks: Channel,
    active: "Callable[[], ActiveVectors | None] | None",
) -> "ViewEvaluator | None":
    """What compares random views; None where evaluate.views is 0. active: of the method; None: there is a backbone alone."""
    from engine.evaluation.views import ViewEvaluator

    count = sizes.viewed_images(config, len(source))
    if not count:
        return None
    instances = np.linspace(0, len(source) - 1, count).round().astype(np.int64)
    views = partial(drawn_views, source, augmentation)
    if active is None:
        return ViewEvaluator(views, instances, "backbone", ranks, has_head=False)
    return ViewEvaluator(views, instances, config.evaluate.features, ranks, active=active)


def probe_labels(config: schema.Config, source: Source) -> np.ndarray | None:
    """What the online probe learns, int64 [N]; None where there is none. ValueError where images have no labels, or all the same."""
    if not config.evaluate.online_probe:
        return None
    labels_N = source.labels()
    if labels_N is None or len(np.unique(labels_N[labels_N >= 0])) < 2:
        few = "no labels" if labels_N is None else "fewer than two labels"
        raise ValueError(
            f"evaluate.online_probe learns labels, and {source.name} has {few}; set data.labels, or evaluate.online_probe to false"
        )
    return labels_N


def online_probe(labels_N: np.ndarray | None, trunk: "Trunk | GivenTrunk", ranks: Ranks) -> "OnlineProbe | None":
    """A classifier that watches the trunk. labels_N: what `probe_labels` gave; None: there is no probe."""
    if labels_N is None:
        return None
    from engine.training.online_probe import OnlineProbe

    head: Any = trunk.network.head
    probe = OnlineProbe(labels_N, head[0].in_features, ranks)
    probe.watch(head)
    return probe


def learning_rate_at(config: schema.Config, schedule: Schedule, total: int, step: int) -> float:
    """The trunk's at a step of `total`."""
    wanted = config.optimizer
    highest = sizes.highest_rate(config)
    warmup = sizes.steps_of(wanted.warmup_epochs, schedule)
    if wanted.schedule == "steps":
        drops = [sizes.steps_of(milestone, schedule) for milestone in wanted.milestones]
        return stepped_rate(
            step, warmup=warmup, highest=highest, warmup_factor=wanted.warmup_factor, drops=drops, gamma=wanted.gamma
        )
    return learning_rate(
        step,
        total=total,
        warmup=warmup,
        highest=highest,
        lowest=wanted.min_lr,
        warmup_factor=wanted.warmup_factor,
    )


def network_of(config: schema.Config) -> "Network":
    """The network before any training. ValueError where features are given, or no library has a network of this name."""
    from engine.trunk.network import make_network

    backbone = config.backbone
    if backbone.is_given:
        raise ValueError(
            f'backbone.name is "given": there is no network, which job={config.job} needs; set it to a network'
        )
    return make_network(
        backbone.name,
        backbone.layers,
        backbone.grid,
        backbone.hidden,
        config.method.dim,
        config.seed,
        stem=backbone.stem,
        side=config.data.image_size,
        head=backbone.head,
    )


def backbone_path(config: schema.Config) -> Path:
    """evaluate.backbone, or the output's own. ValueError where there is no such file."""
    path = Path(config.evaluate.backbone or Path(config.output) / "backbone.safetensors")
    if not path.is_file():
        raise ValueError(f"there is no backbone at {path}; train one with job=pretrain, or set evaluate.backbone")
    return path


def network_of_file(config: schema.Config, path: Path) -> "tuple[Network, str]":
    """The network with a backbone out of a file, this engine's or another's; and what was read, in words. Its head is untrained.

    Images are normalised as evaluate.statistics says, else as the file does, else as the library whose weights these are.

    Raises ValueError as network_of and engine.trunk.foreign_weights.load_backbone do.
    """
    from engine.trunk.backbones import published_statistics
    from engine.trunk.foreign_weights import load_backbone

    network, name = network_of(config), config.backbone.name
    found = load_backbone(path, network.backbone, name)
    statistics = config.evaluate.statistics or found.statistics
    if statistics is None and found.is_of_library:
        statistics = published_statistics(name)
    if statistics:
        network.set_statistics(*statistics)
    mean, std = (", ".join(f"{number:.3g}" for number in tensor.flatten()) for tensor in (network.mean, network.std))
    return network, f"{shown(path)}: {found.what}; images are normalised by mean {mean} and deviation {std}"


def backbone_in_words(config: schema.Config) -> dict[str, str]:
    """What the file of the backbone's weights says of its model; nothing where features are given."""
    if config.backbone.is_given:
        return {}
    from engine.trunk.backbones import described

    return described(config.backbone.name, config.backbone.stem, config.data.image_size)


def make_trunk(
    config: schema.Config, network: torch.nn.Module | None, schedule: Schedule, ranks: Ranks
) -> "Trunk | GivenTrunk":
    """network: None where features are given."""
    if network is None:
        return GivenTrunk(ranks)
    from engine.trunk.trunk import Trunk
    from engine.trunk.zero import ZeroEngine

    train = partial(
        ZeroEngine,
        rule=trunk_rule(config),
        clip=config.optimizer.clip,
        config=config.deepspeed,
        **engine_settings(config, schedule, ranks),
    )
    return Trunk(network, ranks, train)


def trunk_rule(config: schema.Config) -> "Rule":
    """What steps the trunk's weights."""
    from engine.trunk.optimizers import AdamW, LarsRule, Sgd

    wanted = config.optimizer
    if wanted.trunk == "lars":
        return LarsRule(wanted.momentum, wanted.weight_decay, wanted.trust)
    if wanted.trunk == "adamw":
        return AdamW(wanted.betas, wanted.eps, wanted.weight_decay)
    return Sgd(wanted.momentum, wanted.weight_decay, wanted.nesterov)


def engine_settings(config: schema.Config, schedule: Schedule, ranks: Ranks) -> dict[str, Any]:
    """What trunk and rows have in common under DeepSpeed."""
    return {
        "ranks": ranks.size,
        "places": schedule.batch // ranks.size,
        "micro_batches": config.schedule.micro_batches,
        "device": ranks.device,
    }
