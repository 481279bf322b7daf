"""job=export: the backbone, the embeddings and the rows of a run's newest checkpoint, in instance order."""

import argparse
import json
from functools import partial
from pathlib import Path

from configs import schema
from datasets.catalog import every_image
from engine.disk.chosen import chosen_checkpoint, while_it_is_there
from engine.jobs import parts
from engine.jobs.data import images_directory, open_data
from engine.jobs.row_table import rows_of
from engine.results import exports
from engine.results.output import EXPORT, Output
from engine.rows.snapshots import RowReader
from engine.training.checkpoint import read_trunk


def run(config: schema.Config, options: argparse.Namespace) -> int:
    """Write the files into `exports`; returns the exit code."""
    from engine.evaluation.evaluate import embed_loaded
    from engine.trunk.network import embed

    network = parts.network_of(config)
    names = [name for name in EXPORT if config.method.has_rows or name != "exports/rows.npy"]
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
        shapes = exports.export_run(
            directory,
            reader=RowReader(rows_of(config, checkpoint, schedule)) if config.method.has_rows else None,
            size=schedule.size,
            instances=schedule.instances,
            backbone=exports.backbone_of(model),
            model=parts.backbone_in_words(config),
            embed=partial(embed_loaded, lambda images: embed(network, images, "backbone")),
            images=every_image(source, config.data.image_size, schedule.size),
            name_of=source.instance_name,
            about={"step": checkpoint.step, "source": source.name},
        )
    print("\n".join([*complaints, f"exported step {checkpoint.step} to {directory}: " + json.dumps(shapes)]))
    return 0
