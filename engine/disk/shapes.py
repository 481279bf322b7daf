"""Every name that the engine gives to what it writes below `checkpoints` and `exports`. What has no such name is somebody else's.

    manifests/000000012.json, .damaged              engine/disk/manifest.py; the second was set aside by repair
    step-000001200/, step-000001200-2/              engine/training/checkpoint.py
        trunk, momentum, active[-r], log-full, log-delta, blocks[-r]-full, blocks[-r]-delta,
        shared-<name>                                                                          .safetensors
    rows/000004-3fa29c/                             engine/disk/zarr_store.py
        zarr.json
        weight/, momentum/, last_step/              zarr.json, c.17.0 (c.17 in last_step)
    part-of-a-run                                   on the disk of a node that is not the first
    images.index                                    of the sources; never garbage
    .pic-engine.lock                                where an output has a link to this directory; never garbage

    rows.npy, embeddings.npy, names.txt, backbone.safetensors, manifest.json
                                                    engine/results/exports.py, in `exports`
    rows-1200.npy, rows-1200.json, rows-1200.zarr/                      engine/jobs/store_export.py, in `exports`

A name with `.part` behind it is a file or an export that is not whole yet; `.zarr.old.part` is an export while another takes its
place, `.zarr.room.part` the room that one will need. Nothing else is removed, and a manifest may name nothing else. Numbers have
a length that a run can reach, so that none of them is too large for an array or for the name of the next.
"""

import re

from datasets.shown import shown as shown_name

TEMPORARY = ".part"  # how the name of a file ends that is not whole yet

LOCK_OF_LINKED = ".pic-engine.lock"

# Lies among the checkpoints of a node that has a disk of its own and is not the first: their manifests are elsewhere.
PART_OF_A_RUN = "part-of-a-run"

MOST_MANIFESTS = 10**9 - 1  # the highest number that a manifest's name has room for

_STEP = r"step-[0-9]{9,12}(?:-[0-9]{1,9})?"
_ROWS = r"rows/[0-9]{6,12}-[0-9a-f]{6}"
_RANK = r"(?:-(?:0|[1-9][0-9]{0,5}))?"
_BLOCK = r"(?:0|[1-9][0-9]{0,17})"

_SHARED = re.compile(r"[a-z][a-z0-9_]{0,31}")
_STEP_FILE = re.compile(
    rf"{_STEP}/(?:trunk|momentum|active{_RANK}|log-(?:full|delta)|blocks{_RANK}-(?:full|delta)"
    rf"|shared-{_SHARED.pattern})\.safetensors"
)
_GENERATION = re.compile(r"([0-9]{6,12})-[0-9a-f]{6}")
_CHUNK = re.compile(rf"(?:(?:weight|momentum)/c\.({_BLOCK})\.0|last_step/c\.({_BLOCK}))(?:\.part)?")
_MANIFEST = re.compile(r"([0-9]{9})\.(?:json|damaged)(?:\.part)?")
_STEP_DIRECTORY = re.compile(_STEP)
_DIRECTORY = re.compile(rf"manifests|rows|{_STEP}|{_ROWS}(?:/(?:weight|momentum|last_step))?")
_FILE = re.compile(
    rf"(?:manifests/{_MANIFEST.pattern}|{_STEP_FILE.pattern}"
    rf"|{_ROWS}/(?:(?:(?:weight|momentum|last_step)/)?zarr\.json|{_CHUNK.pattern})"
    r"|part-of-a-run|\.pic-engine\.lock|images\.index(?:\.partial)?)(?:\.part)?"
)

_EXPORT = re.compile(
    r"(?:rows\.npy|embeddings\.npy|names\.txt|backbone\.safetensors|manifest\.json|rows-[0-9]{1,12}\.(?:npy|json))(?:\.part)?"
    r"|rows-[0-9]{1,12}\.zarr\.room\.part|rows-[0-9]{1,12}\.zarr(?:(?:\.old)?\.part)?/"
    r"(?:zarr\.json|c/[0-9]{1,12}/0|(?:zarr|c/[0-9]{1,12}/0)\.[0-9a-f]{32}\.partial)"  # what zarr has begun to write
)
_EXPORT_DIRECTORY = re.compile(r"rows-[0-9]{1,12}\.zarr(?:(?:\.old)?\.part)?(?:/c(?:/[0-9]{1,12})?)?")


def is_export(path: str) -> bool:
    """Whether an export writes a file of this path below `exports`, whole or not."""
    return _EXPORT.fullmatch(path) is not None


def is_export_directory(path: str) -> bool:
    return _EXPORT_DIRECTORY.fullmatch(path) is not None


def is_file(path: str) -> bool:
    """Whether the engine writes a file of this path below `checkpoints`, whole or not."""
    return _FILE.fullmatch(path) is not None


def is_directory(path: str) -> bool:
    """Whether the engine makes a directory of this path below `checkpoints`."""
    return _DIRECTORY.fullmatch(path) is not None


def is_step_directory(name: str) -> bool:
    return _STEP_DIRECTORY.fullmatch(name) is not None


def is_step_file(path: str) -> bool:
    """Whether a manifest may name this path as one of a checkpoint's own files."""
    return _STEP_FILE.fullmatch(path) is not None


def is_shared_name(name: str) -> bool:
    """Whether a component that is the same on every rank may have this name."""
    return _SHARED.fullmatch(name) is not None


def shared_path(directory: str, name: str) -> str:
    """The file of such a component, in the directory of a checkpoint."""
    return f"{directory}/shared-{name}.safetensors"


def generation_number(name: str) -> int | None:
    """Of the directory of a generation; None where it is not the name of one."""
    found = _GENERATION.fullmatch(name)
    return int(found[1]) if found else None


def chunk_block(name: str) -> int | None:
    """The block whose chunk, whole or not, has this name in a column: `weight/c.17.0` -> 17. None for other names."""
    found = _CHUNK.fullmatch(name)
    return int(found[1] or found[2]) if found else None


def manifest_number(name: str) -> int | None:
    """Of a manifest, whole or not, set aside or not; None where the name is no manifest's."""
    found = _MANIFEST.fullmatch(name)
    return int(found[1]) if found else None


def shown(name: str, longest: int = 80) -> str:
    """A name or text as one line may show it; the middle of a long one is left out."""
    return shown_name(name, longest)
