"""The only entry: `python launch.py --config configs/pic_sampled.json [section.key=value ...]`.

The same line runs under `deepspeed` and `torchrun`, on any number of ranks that divides schedule.lanes. The config is checked
before torch is imported; what depends on the images is checked before anything is written. Mistakes of the user end with exit code 2
and at most three lines. Of several ranks rank 0 speaks, and any rank that has a complaint of its own.

Here the command line becomes a config and the name of a job; the jobs are in engine/jobs.
"""

import argparse
import importlib
import importlib.util
import os
import sys
import time
from pathlib import Path

# Run in place: `datasets` and `kernels` are also names of public packages, and ours must win.
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
if strangers := [
    f"{room} from {origin}"
    for room in ("configs", "datasets", "engine", "kernels")
    if room in sys.modules
    and HERE not in Path(origin := getattr(sys.modules[room], "__file__", None) or "elsewhere").resolve().parents
]:
    print(
        f"error: {', '.join(strangers)} was imported before this engine's own could be, by a sitecustomize or a .pth file;\n"
        "take it out of there, or off PYTHONPATH",
        file=sys.stderr,
    )
    sys.exit(2)

from configs import schema
from engine.jobs import help_text
from engine.jobs.chosen_sizes import lanes_of
from engine.jobs.explained import explanation, print_error
from engine.ranks.environment import check_environment, environment_number, number_or_zero
from engine.results.streams import let_standard_streams_escape

_FIRST_SPEAKS_SECONDS = 10


def main(arguments: list[str]) -> int:
    options = parsed(arguments)
    let_standard_streams_escape()
    if not os.environ.get("HOME", "unset").strip():
        del os.environ["HOME"]  # which is no home; without it the system's list of users says where that is
    may_be_silent = False
    try:
        check_environment()
        may_be_silent = number_or_zero("LOCAL_RANK") > 0
        config = schema.load(options.config, options.overrides)
        check_launch(config, options)
    except (ValueError, MemoryError) as error:
        code, text = explanation(error, "") or (1, "error: ")
        if isinstance(error, ValueError) and may_be_silent:
            # The first rank of a machine most likely finds the same and says it; its end makes the launcher end this one.
            time.sleep(_FIRST_SPEAKS_SECONDS)
        print_error(text)
        return code
    # When a rank is lost, torch prints a page of its own stack in each of the others; engine/ranks/watch.py says it in a line.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        return importlib.import_module(f"engine.jobs.{config.job}").run(config, options)
    except BrokenPipeError:  # whoever read our output has gone
        return 1
    except (Exception, KeyboardInterrupt) as error:
        explained = explanation(error, config.job)
        if explained is None:
            raise
        code, text = explained
        print_error(text)
        return code


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Train and use parametric instance classifiers.",
        epilog=help_text(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="a JSON file; configs/README.md explains every key")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved config and the memory plan, train nothing"
    )
    parser.add_argument("--fresh", action="store_true", help="remove what an earlier run left in the output directory")
    parser.add_argument("--local_rank", type=int, default=0, help="set by the deepspeed launcher; not used")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that replace the file's")
    return parser.parse_intermixed_args(arguments)


def check_launch(config: schema.Config, options: argparse.Namespace) -> None:
    """ValueError where the config does not fit the command line, or the number of ranks."""
    ranks = environment_number("WORLD_SIZE", 1)
    if config.job not in ("pretrain", "linear", "profile", "scale") and options.dry_run:
        raise ValueError(
            f"--dry-run is for job=pretrain, linear, profile and scale, not for job={config.job}; leave it out"
        )
    if config.job != "pretrain" and options.fresh:
        raise ValueError(f"--fresh is for job=pretrain, not for job={config.job}; leave it out")
    if config.job not in ("pretrain", "linear", "profile") and ranks > 1:
        raise ValueError(f"job={config.job} runs on one rank, and {ranks} were launched; start it with plain python")
    if lanes_of(config) % ranks:
        raise ValueError(
            f"{ranks} ranks were launched, which do not divide schedule.lanes ({lanes_of(config)}); "
            "launch a number that does, or start a new run with other lanes"
        )
    if config.evaluate.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError(
            "evaluate.tensorboard needs the tensorboard package; pip install tensorboard, or set it to false"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
