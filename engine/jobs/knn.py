"""job=knn: evaluate a saved backbone, the one in the output directory, or evaluate.backbone, which may be somebody else's."""

import argparse
from pathlib import Path

from configs import schema
from datasets.catalog import sample_images
from engine.evaluation.nearest import KnnEvaluator, describe
from engine.jobs import parts
from engine.jobs.data import images_directory, open_images, open_probe
from engine.ranks.ranks import Channel
from engine.results.output import Output
from engine.results.output_names import KNN


def run(config: schema.Config, options: argparse.Namespace) -> int:
    """Print the figures and write knn.json; returns the exit code."""
    from engine.trunk.network import check_sides

    path = parts.backbone_path(config)
    if config.evaluate.features != "backbone":
        raise ValueError("a saved backbone has no head; set evaluate.features to backbone")
    output = Output(Path(config.output), KNN, images_directory(config))
    parts.use_threads(config)
    source, augmentation = open_images(config)
    network, what = parts.network_of_file(config, path)
    is_viewed = config.evaluate.views or config.evaluate.jittered
    check_sides(network, {config.data.image_size, *(config.data.sides[:1] if is_viewed else ())})
    probe = open_probe(config, source, augmentation)
    sample = sample_images(source, config.data.image_size, min(2000, config.evaluate.limit))
    print(f"evaluating {what}\nthis takes minutes where there are many images", flush=True)
    line = KnnEvaluator(probe, sample, parts.protocol_of(config), Channel()).evaluate(lambda: network)
    assert line
    print(describe(str(path), line))
    output.make()
    output.write_json("knn.json", {"backbone": str(path), **line})
    views = parts.view_evaluator(config, source, augmentation, Channel(), None)
    if views and (figures := views.evaluate(lambda: network)):
        print(views.text(str(path), figures))
        output.write_json("knn.json", {"backbone": str(path), **line, **figures})
    return 0
