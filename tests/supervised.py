"""Not tests: the network of a config trained with labels, on the views and in the order of its run, to see how far features could go.

    python -m tests.supervised --config tests/compared.json output=runs/supervised ...

Network, views, order, learning rate and decay are the config's; the loss is cross entropy of a linear layer on the backbone's features. It
leaves what a comparison reads of a run (tests/comparison.py). One that is killed starts over.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import launch
from configs import schema
from datasets.loader import StepDataset
from engine.jobs import parts, sizes
from engine.jobs.data import open_data
from engine.results.exports import export_backbone
from engine.results.output import Output
from engine.results.output_names import PRETRAIN


def train(config: schema.Config) -> tuple[nn.Module, float]:
    """(the backbone, the mean loss of the last twentieth of the steps)."""
    source, augmentation, schedule, config = open_data(config, None)
    labels = source.labels()
    assert labels is not None
    # Labels may be far apart, as code points are; classes are not.
    known, classes = np.unique(labels, return_inverse=True)
    labels_N = torch.from_numpy(classes)
    network = parts.network_of(config)
    network.head = nn.Linear(network.head[0].in_features, len(known))
    wanted, total = config.optimizer, sizes.total_steps(config, schedule)
    optimizer = torch.optim.SGD(network.parameters(), wanted.lr, wanted.momentum, weight_decay=wanted.weight_decay)
    batches, losses = StepDataset(source, schedule, augmentation, config.seed), []
    for step in range(total):
        batch = batches[step]
        filled = torch.from_numpy(batch.filled_G)
        logits_XC = network.head(network.features([view[filled] for view in batch.views]))
        loss = cross_entropy(logits_XC, labels_N[batch.ids_G[batch.filled_G]].repeat(len(batch.views)))
        optimizer.param_groups[0]["lr"] = parts.learning_rate_at(config, schedule, total, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    tail = losses[-max(1, total // 20) :]
    return network.backbone, sum(tail) / len(tail)


def main(argv: list[str]) -> int:
    options = launch.parsed(argv)
    config = schema.load(options.config, options.overrides)
    torch.set_num_threads(config.threads or 1)
    own, begun = Output(Path(config.output), PRETRAIN), time.monotonic()
    own.make()
    backbone, loss = train(config)
    export_backbone(own.enter("backbone.safetensors"), backbone.state_dict(), parts.backbone_in_words(config))
    code = launch.main([*argv, "job=knn"])
    if code == 0:
        own.write_text("evaluations.jsonl", (own.path / "knn.json").read_text().replace("\n", " ") + "\n")
        summary = {"status": "finished", "loss": loss, "session_seconds": time.monotonic() - begun}
        own.write_json("summary.json", summary)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
