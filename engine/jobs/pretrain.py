"""job=pretrain: train; go on where an earlier run in the same directory stopped. All ranks do it together, and end together."""

import argparse
from functools import partial

import torch

from configs import schema
from engine.jobs.explained import explanation, print_error
from engine.ranks.environment import environment_number
from engine.ranks.joined import joined


def run(config: schema.Config, options: argparse.Namespace) -> int:
    """Returns the exit code. Raises SystemExit where one of several ranks has told an error."""
    has_gpu = torch.cuda.is_available()
    device = torch.device("cuda", environment_number("LOCAL_RANK", 0)) if has_gpu else torch.device("cpu")
    explain = partial(explanation, job=config.job)
    wanted = config.ranks
    with joined(device, wanted.timeout_seconds, wanted.patience_seconds, explain, print_error) as (ranks, cleanup):
        from engine.jobs.start import Start  # which takes its time: the ranks are there, and each waits for the others

        return Start(config, ranks, cleanup).train_or_plan(options.dry_run, options.fresh)
