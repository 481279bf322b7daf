"""Images, views and order of a run: opened, and checked against each other and against the run that they go on with."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from configs import schema
from datasets.batch import Probe
from datasets.catalog import Kept, make_augmentation, make_probe, open_source
from datasets.given import GivenFeatures
from datasets.index.image_index import WrongIndex
from datasets.schedule import Schedule
from datasets.shown import shown
from datasets.source import Source
from engine.disk.files import CHECKPOINTS
from engine.disk.manifest_body import check_run_state
from engine.jobs.chosen_sizes import sized, sized_as
from engine.jobs.sizes import capacities, is_full
from engine.ranks.lanes import Lanes
from engine.results.output_names import INDEX, UNREADABLE
from engine.training.reading import listed

if TYPE_CHECKING:
    from datasets.grey import GreyAugment
    from datasets.indexed import IndexedImages
    from datasets.photos import PhotoAugment
    from engine.disk.saved_checkpoint import SavedCheckpoint


_OF_FILES = ("folder", "zip")  # sources whose images have an index


def images_directory(config: schema.Config) -> Path | None:
    """Where the user's images lie; None where the source brings its own."""
    return Path(os.path.expanduser(config.data.root)) if config.data.root else None


class Opened(NamedTuple):
    """config: as it was given, with a number for each size that it left to be chosen."""

    source: Source
    augmentation: "GreyAugment | PhotoAugment | GivenFeatures"
    schedule: Schedule
    config: schema.Config


def open_images(config: schema.Config) -> "tuple[Source, GreyAugment | PhotoAugment | GivenFeatures]":
    """Source and views of a job that visits no image twice: there is no order, so sizes of windows and batches say nothing.

    Prints what is to be known of the images.
    """
    _tell_listing(config)
    source = _source(config)
    for note in source.notes:
        print(note)
    return source, _augmentation_of(config, source)


def open_data(config: schema.Config, last: "SavedCheckpoint | None", grows: bool = True) -> Opened:
    """Source, augmentation and schedule, checked against each other and against the run that they go on with.

    last    the checkpoint of that run. Images that were appended since then join the order from the next pass on
    grows   False: they are left out
    """
    if last:
        check_run_state(last.body)
        config = sized_as(config, last.body.state.config or {})
        schema.refuse_other_run(config, last.body.state.config or {})
    history = last.body.state.segments if last else None
    size = sum(segment[0] for segment in history) if history else None
    _tell_listing(config)
    source = _known_source(config, last, size) if last and size else _source(config)
    augmentation = _augmentation_of(config, source)
    if not history:
        config = sized(config, len(source))
        config.method.check(config)  # as far as it depends on sizes that were left to be chosen
    history, size = history or [[len(source), 0]], size or len(source)
    wanted = config.schedule
    assert wanted.block and wanted.lanes
    stripe = wanted.block * wanted.lanes
    window = wanted.window or -(-history[0][0] // stripe) * stripe  # a window does not grow with the images
    schedule = Schedule.from_history(
        history,
        seed=config.seed,
        window=window,
        stride=wanted.stride or window,
        batch=wanted.batch,
        block=wanted.block,
        lanes=wanted.lanes,
        reshuffle=wanted.reshuffle,
    )
    added = len(source) - size
    if last and grows and added:
        schedule = _grown(config, schedule, added, last.step)
        print(f"{added:,} images were added; they are visited from the next pass on")
    return Opened(source, augmentation, schedule, config)


def _tell_listing(config: schema.Config) -> None:
    is_listed = config.data.index is None or config.data.rescan
    if config.data.source == "folder" and is_listed and config.data.root:
        # It takes minutes where there are millions.
        print(f"listing the images under {shown(config.data.root)}", flush=True)


def _augmentation_of(config: schema.Config, source: Source) -> "GreyAugment | PhotoAugment | GivenFeatures":
    if config.backbone.is_given:
        return GivenFeatures(config.method.dim, config.data.rows_grad_V)
    return make_augmentation(config.data.augment.model_dump(), config.data.image_size, source.channels)


def _grown(config: schema.Config, schedule: Schedule, added: int, step: int) -> Schedule:
    """The schedule with so many more images. Raises ValueError where the run keeps all rows active."""
    grown = schedule.grown(added, step)
    if not config.method.has_rows:
        return grown
    lanes = Lanes(schedule.lanes)
    if is_full(config, grown) or capacities(config, grown, lanes) != capacities(config, schedule, lanes):
        raise ValueError(
            f"{added} images were added, but this run keeps all rows active, and their number cannot change; "
            "restore the images, or start over with --fresh and method.active below the number of images"
        )
    return grown


def _source(config: schema.Config, known: Path | None = None, known_count: int | None = None) -> Source:
    data = config.data
    return open_source(
        data.source,
        root=data.root,
        image_size=data.image_size,
        limit=data.limit,
        held_out=data.held_out,
        labels=data.labels,
        exclude=data.exclude,
        leave_out=Path(config.output),
        kept=Kept(known, known_count, data.index, data.rescan),
    )


def _known_source(config: schema.Config, last: "SavedCheckpoint", size: int) -> Source:
    """The source in which the first `size` images are those of a checkpoint, by the index that numbers them or, where it is lost, without.

    Images that could not be read may have been repaired since: their file sizes then are in the checkpoint, and in unreadable.jsonl.
    ValueError where images changed, or where only the lost index could tell their order.
    """
    output = Path(config.output)
    known_unreadable = dict(last.body.state.unreadable or [])
    lists = [listed(output / UNREADABLE) | known_unreadable, known_unreadable]  # the file may say anything
    # A copy of checkpoints/ alone is enough to go on. Once a run has grown there are two; older runs have the second alone.
    has_own = config.data.source in _OF_FILES and config.data.index is None
    places = [output / CHECKPOINTS / INDEX, output / INDEX] if has_own else []
    indices = [place for place in places if place.exists()]
    missing = f"{shown(places[0])} is missing" if places and not indices else ""
    lost: WrongIndex | None = None
    compared = False
    for index in [*indices, None]:
        try:
            source = _source(config, index, size)
        except WrongIndex as error:
            lost = lost or error
            continue
        if len(source) >= size and any(_is_that_of(last.body.state.source, source, size, were) for were in lists):
            _refuse_losses(config, source, size, lists[0])
            if lost or missing:
                how = (
                    "it was not needed, as the images are in the order of their names"
                    if index is None
                    else f"{shown(index)} is whole"
                )
                print(f"{lost or missing}: {how}; it is made anew")
            return source
        compared = compared or index is not None
    if lost and not compared:
        raise lost
    if missing:
        raise ValueError(
            f"{missing}, which numbers the images, and in the order of their names they are not those of this run; "
            "restore that file (a copy is good), or the images as they were, or start over with --fresh"
        )
    raise ValueError(
        f"the images changed since {shown(config.output)} was started; restore them, or start over with --fresh. "
        "New images may be added, old ones must stay as they were"
    )


def _is_that_of(fingerprint: str | None, source: Source, size: int, were: dict[int, int]) -> bool:
    """Whether this is the fingerprint of the first `size` images, by the rule of today or by that of earlier versions."""
    if source.fingerprint(size, were) == fingerprint:
        return True
    images = _indexed(source)
    return images is not None and images.was_fingerprint(size, were) == fingerprint


def _indexed(source: Source) -> "IndexedImages | None":
    """The source, if it is one of files; what decodes is not imported for another."""
    if source.name not in _OF_FILES:
        return None
    from datasets.indexed import IndexedImages

    assert isinstance(source, IndexedImages)
    return source


def _refuse_losses(config: schema.Config, source: Source, size: int, unreadable: dict[int, int]) -> None:
    """ValueError where more of the known images are gone or changed than may be unreadable: then it is another set."""
    images = _indexed(source)
    if images is None:
        return
    most, lost = config.data.max_unreadable, images.changes.lost(unreadable)
    if lost > max(most * size, most > 0):
        raise ValueError(
            f"the images changed since {shown(config.output)} was started: {'; '.join(images.changes.notes()[:2])}. "
            f"These are more than data.max_unreadable ({most:g}) allows; restore them, or start over with --fresh"
        )


def cached(config: schema.Config, source: Source, schedule: Schedule, lanes: Lanes) -> Source:
    """The source, with the images of a rank's lanes, or all, in memory where `data.cache` says so."""
    data = config.data
    if data.cache == "none":
        return source
    from datasets.cached import CachedSource  # and with it what decodes

    most_bytes = None if data.cache_gib is None else round(data.cache_gib * 2**30)
    images = CachedSource(source, data.cache_of == "encoded", most_bytes)
    blocks = np.arange(-(-schedule.positions_end // schedule.block))
    for block in (blocks if data.cache == "full" else lanes.chosen(blocks)).tolist():
        ids = schedule.instances(np.arange(block * schedule.block, (block + 1) * schedule.block))
        images.fill(ids[ids >= 0].tolist())
    rest = f"; {images.left_over:,} images do not fit and are read at each visit" if images.left_over else ""
    print(f"{images.bytes / 2**20:,.0f} MiB of {data.cache_of} images are kept in memory by each rank{rest}")
    return images


def open_probe(
    config: schema.Config, source: Source, augmentation: "GreyAugment | PhotoAugment | GivenFeatures"
) -> Probe | None:
    """How this run is evaluated; None where nothing is labelled, or where there is no network to be asked."""
    if isinstance(augmentation, GivenFeatures):
        return None
    data = config.data
    return make_probe(
        source,
        augmentation,
        root=data.root,
        image_size=data.image_size,
        held_out=data.held_out,
        gallery=config.evaluate.gallery,
        limit=config.evaluate.limit,
        query_limit=config.evaluate.query_limit,
        jittered=config.evaluate.jittered,
    )
