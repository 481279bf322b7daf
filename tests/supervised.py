"""Not tests: the network of a config trained with labels, on the views and in the order of its run, to see how far features could go.

    python -m tests.supervised --config tests/compared.json output=runs/supervised ...

Network, views, order, learning rate and decay are the config's; the loss is cross entropy of a linear layer on the backbone's features. It
leaves what a comparison reads of a run (tests/comparison.py). One that is killed goes on from a state that is at most a minute old.
"""

import sys
import time
from functools import partial
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
from engine.probing.kept import Kept
from engine.results.exports import export_backbone
from engine.results.output import Output
from engine.results.output_names import PRETRAIN


def train(config: schema.Config, kept: Path | None = None) -> tuple[nn.Module, float]:
    """(the backbone, the mean loss of the last twentieth of the steps). kept: a file from which one that was killed goes on."""
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
    state = Kept(kept, config.model_dump_json())
    first, before = state.load() or (0, {})
    if before:
        losses = before.pop("losses").tolist()
        _put_back(network, optimizer, before)
    for step in range(first, total):
        batch = batches[step]
        filled = torch.from_numpy(batch.filled_G)
        logits_XC = network.head(network.features([view[filled] for view in batch.views]))
        loss = cross_entropy(logits_XC, labels_N[batch.ids_G[batch.filled_G]].repeat(len(batch.views)))
        optimizer.param_groups[0]["lr"] = parts.learning_rate_at(config, schedule, total, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        state.save(step + 1, partial(_state, network, optimizer, losses), is_last=False)
    tail = losses[-max(1, total // 20) :]
    return network.backbone, sum(tail) / len(tail)


def _state(network: nn.Module, optimizer: torch.optim.SGD, losses: list[float]) -> dict[str, torch.Tensor]:
    momenta = {
        f"momentum.{name}": optimizer.state[weight]["momentum_buffer"] for name, weight in network.named_parameters()
    }
    return {**network.state_dict(), **momenta, "losses": torch.tensor(losses, dtype=torch.float64)}


def _put_back(network: nn.Module, optimizer: torch.optim.SGD, state: dict[str, torch.Tensor]) -> None:
    for name, weight in network.named_parameters():
        optimizer.state[weight]["momentum_buffer"] = state.pop(f"momentum.{name}")
    network.load_state_dict(state)


def main(argv: list[str]) -> int:
    options = launch.parsed(argv)
    config = schema.load(options.config, options.overrides)
    torch.set_num_threads(config.threads or 1)
    own, begun = Output(Path(config.output), PRETRAIN), time.monotonic()
    own.make()
    kept = own.path.with_name(f"{own.path.name}.kept")  # beside the output, where every name is the engine's own
    backbone, loss = train(config, kept)
    export_backbone(own.enter("backbone.safetensors"), backbone.state_dict(), parts.backbone_in_words(config))
    code = launch.main([*argv, "job=knn"])
    if code == 0:
        own.write_text("evaluations.jsonl", (own.path / "knn.json").read_text().replace("\n", " ") + "\n")
        summary = {"status": "finished", "loss": loss, "session_seconds": time.monotonic() - begun}
        own.write_json("summary.json", summary)
        kept.unlink(missing_ok=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
