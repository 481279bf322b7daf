"""Manifests read and written past the engine, and what no manifest of its own says."""

import json
from pathlib import Path

from engine.disk import manifest

GOLDEN = Path(__file__).parents[1] / "golden"


def body_of(root, number=2):
    return json.loads((root / manifest.path_of(number)).read_text())["body"]


def put(root, body, number=2):
    """Write it with a checksum that is right."""
    content = {"sha256": manifest._digest(body), "body": body}
    (root / manifest.path_of(number)).write_text(json.dumps(content))


# What is no path of a file, and no number, in a manifest.
PATHS = [
    "../../victim", "../victim/trunk.safetensors", "/etc/passwd", "", ".", "..", "a/../b", "step-000000014/../../victim/x",
    "step-000000014/trunk.safetensors\0", "step-000000014//trunk.safetensors", "./step-000000014/trunk.safetensors",
    "step-000000014", "step-best/trunk.safetensors", "step-000000014/notes", "rows/000001-abcdef/weight/c.0.0",
    "manifests/000000001.json", "step-000000014/trunk.safetensors\n", "step-٠٠٠٠٠٠٠١٤/trunk.safetensors", "\ud800", "x" * 10**5,
    None, 7, [], {}, True,
]  # fmt: skip
NUMBERS = [-1, 2**63, 10**400, 1.0, 0.5, True, None, "7", [], {}, float("nan"), float("inf")]
