"""job=knn: evaluate a saved backbone, the one in the output directory, or evaluate.backbone, which may be somebody else's."""

import argparse
from pathlib import Path

from configs import schema
from datasets.catalog import sample_images
from engine.evaluation.nearest import KnnEvaluator, describe
from engine.jobs import parts
from engine.jobs.data import images_directory, open_data, open_probe
from engine.ranks.ranks import Channel
from engine.results.output import Output
from engine.results.output_names import KNN


def run(config: schema.Config, options: argparse.Namespace) -> int:
    """Print the figures and write knn.json; returns the exit code."""
    path = parts.backbone_path(config)
    if config.evaluate.features != "backbone":
        raise ValueError("a saved backbone has no head; set evaluate.features to backbone")
    output = Output(Path(config.output), KNN, images_directory(config))
    source, augmentation, _, config = open_data(config, None)
    network, what = parts.network_of_file(config, path)
    probe = open_probe(config, source, augmentation)
    sample = sample_images(source, config.data.image_size, min(2000, config.evaluate.limit))
    print(f"evaluating {what}; this takes minutes where there are many images", flush=True)
    line = KnnEvaluator(probe, sample, parts.protocol_of(config), Channel()).evaluate(lambda: network)
    assert line
    print(describe(str(path), line))
    views = parts.view_evaluator(config, source, augmentation, Channel(), None)
    if views and (figures := views.evaluate(lambda: network)):
        print(views.text(str(path), figures))
        line |= figures
    output.make()
    output.write_json("knn.json", {"backbone": str(path), **line})
    return 0
