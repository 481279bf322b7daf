"""What lies below a directory, to be compared with what lay there before."""

import os
from pathlib import Path


def tree(path):
    """Every name below, with its bytes or what a link leads to; links are not followed."""
    found = {}
    for above, directories, names in os.walk(path):
        for one in (Path(above, name) for name in directories + names):
            content = os.readlink(one) if one.is_symlink() else one.read_bytes() if one.is_file() else False
            found[os.path.relpath(one, path)] = content
    return found


def contents(root):
    """The bytes of every file below, by its name."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
