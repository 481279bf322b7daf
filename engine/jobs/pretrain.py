"""job=pretrain: train; go on where an earlier run in the same directory stopped. All ranks do it together, and end together."""

import argparse
from contextlib import AbstractContextManager, ExitStack
from functools import partial

import torch

from configs import schema
from engine.jobs.explained import explanation, print_error
from engine.ranks.environment import environment_number
from engine.ranks.joined import joined
from engine.ranks.ranks import Ranks


def run(config: schema.Config, options: argparse.Namespace) -> int:
    """Returns the exit code. Raises SystemExit where one of several ranks has told an error."""
    with joined_ranks(config) as (ranks, cleanup):
        from engine.jobs.start import Start  # which takes its time: the ranks are there, and each waits for the others

        return Start(config, ranks, cleanup).train_or_plan(options.dry_run, options.fresh)


def joined_ranks(config: schema.Config) -> AbstractContextManager[tuple[Ranks, ExitStack]]:
    """The ranks of this launch, and what closes what they open (engine/ranks/joined.py)."""
    has_gpu = torch.cuda.is_available()
    device = torch.device("cuda", environment_number("LOCAL_RANK", 0)) if has_gpu else torch.device("cpu")
    explain = partial(explanation, job=config.job)
    wanted = config.ranks
    return joined(device, wanted.timeout_seconds, wanted.patience_seconds, explain, print_error)
