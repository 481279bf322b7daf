"""job=export: the backbone, the embeddings and the rows of a run's newest checkpoint, in instance order.

With `evaluate.backbone` the backbone of that file and its embeddings: no run is looked at, and there are no rows.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from configs import schema
from datasets.catalog import every_image
from datasets.shown import shown
from engine.disk.chosen import chosen_checkpoint, while_it_is_there
from engine.disk.files import CHECKPOINTS
from engine.jobs import parts
from engine.jobs.data import images_directory, open_data, open_images
from engine.jobs.row_table import rows_of
from engine.results import exports
from engine.results.output import Output
from engine.results.output_names import EXPORT
from engine.rows.snapshots import RowReader
from engine.training.checkpoint import read_trunk

if TYPE_CHECKING:
    from engine.trunk.network import Network

ROWS = "exports/rows.npy"


def run(config: schema.Config, options: argparse.Namespace) -> int:
    """Write the files into `exports`; returns the exit code."""
    parts.use_threads(config)
    if config.evaluate.backbone:
        return _export_file(config, Path(config.evaluate.backbone))
    network = parts.network_of(config)
    names = [name for name in EXPORT if config.method.has_rows or name != ROWS]
    output = Output(Path(config.output), names, images_directory(config))
    checkpoint, complaints = chosen_checkpoint(Path(config.output), None)
    source, _, schedule, config = open_data(config, checkpoint, grows=False)
    output.make()
    for name in names:
        output.enter(name)
    directory = output.path / "exports"
    with while_it_is_there(checkpoint):
        model = read_trunk(checkpoint)
        network.load_state_dict(model)
        exported = exports.export_run(
            directory,
            reader=RowReader(rows_of(config, checkpoint, schedule)) if config.method.has_rows else None,
            size=schedule.size,
            instances=schedule.instances,
            backbone=exports.backbone_of(model),
            model=parts.backbone_in_words(config),
            embed=_embedder(network),
            images=every_image(source, config.data.image_size, schedule.size),
            name_of=source.instance_name,
            about={"step": checkpoint.step, "source": source.name},
        )
    print("\n".join([*complaints, f"exported step {checkpoint.step} to {directory}: {exported}"]))
    return 0


def _export_file(config: schema.Config, path: Path) -> int:
    from engine.trunk.network import check_sides

    names = [name for name in EXPORT if name != ROWS]
    output = Output(Path(config.output), names, images_directory(config))
    for name in (CHECKPOINTS, ROWS):
        if (output.path / name).exists():
            raise ValueError(
                f"{shown(output.path)} has the {name} of a run, and job=export of evaluate.backbone would write among them; "
                "choose another output, or leave evaluate.backbone out"
            )
    if not path.is_file():
        raise ValueError(f"there is no backbone at {shown(path)}; set evaluate.backbone to a file")
    source, _ = open_images(config)
    network, what = parts.network_of_file(config, path)
    check_sides(network, {config.data.image_size})
    print(f"exporting features of {what}", flush=True)
    output.make()
    for name in names:
        output.enter(name)
    exported = exports.export_run(
        output.path / "exports",
        reader=None,
        size=len(source),
        instances=lambda positions: positions,
        backbone=network.backbone.state_dict(),
        model=parts.backbone_in_words(config) | network.own_statistics,
        embed=_embedder(network),
        images=every_image(source, config.data.image_size, len(source)),
        name_of=source.instance_name,
        about={"backbone": shown(path), "source": source.name},
    )
    print(f"exported to {output.path / 'exports'}: {exported}")
    return 0


def _embedder(network: "Network") -> exports.Embed:
    from engine.evaluation.evaluate import embed_loaded
    from engine.trunk.network import embed

    return partial(embed_loaded, lambda images: embed(network, images, "backbone"))
