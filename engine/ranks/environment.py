"""Numbers that a launcher leaves in environment variables: which rank this is, of how many, and where the others are.

A variable that is set and empty (`WORLD_SIZE= python launch.py`, an unset one in a job script) is one that is not set. This
module imports nothing heavy: launch.py asks it before torch is there.
"""

import os

from datasets.shown import cut_text

# The least and the largest value of each, both included.
_BOUNDS = {
    "WORLD_SIZE": (1, 2**20),
    "RANK": (0, 2**20),
    "LOCAL_RANK": (0, 2**20),
    "LOCAL_WORLD_SIZE": (1, 2**20),  # torchrun's name for how many there are on this machine
    "LOCAL_SIZE": (1, 2**20),  # deepspeed's
    "MASTER_PORT": (0, 65535),
}
_WAY_OUT = "unset it, or start with deepspeed or torchrun, which set it (engine/RANKS.md)"


def is_set(name: str) -> bool:
    """Whether the variable is there and says something."""
    return bool(os.environ.get(name, "").strip())


def environment_number(name: str, default: int) -> int:
    """The whole number in an environment variable; `default` where it is not set, or empty.

    Raises ValueError, naming the variable, where it holds anything else, or a number that cannot be one of its kind.
    """
    if not is_set(name):
        return default
    text = os.environ[name].strip()
    least, most = _BOUNDS.get(name, (0, 2**63 - 1))
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        raise ValueError(f'the environment variable {name} is "{cut_text(text, 40)}", not a whole number; {_WAY_OUT}')
    if not least <= int(text) <= most:
        raise ValueError(f"the environment variable {name} is {text}, and must be {least} to {most}; {_WAY_OUT}")
    return int(text)


def number_or_zero(name: str) -> int:
    """For whoever has to say something, perhaps of these variables: 0 where the variable holds no number."""
    try:
        return environment_number(name, 0)
    except ValueError:
        return 0


def check_environment() -> None:
    """ValueError where what the launcher says of this rank is no number, or does not fit together; sets nothing."""
    size = environment_number("WORLD_SIZE", 1)
    for name in _BOUNDS:
        environment_number(name, 1)
    shown_size = size if is_set("WORLD_SIZE") else "not set, which means 1"
    for name in ("RANK", "LOCAL_RANK"):
        number = environment_number(name, 0)
        if number >= size:
            raise ValueError(
                f"the environment variable {name} is {number}, and WORLD_SIZE is {shown_size}: ranks are numbered from 0; {_WAY_OUT}"
            )
