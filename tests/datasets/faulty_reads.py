"""Faults that are put into os.open and os.read, since root may read everything."""

import errno
import os
from pathlib import Path

import pytest
from PIL import Image

Pauses = list[float]
MACHINES = [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOLCK, errno.EAGAIN]


def save(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (10, 20, 30)).save(path)
    return path


def fails(monkeypatch: pytest.MonkeyPatch, call: str, number: int, times: int = 10**9, of: str = "") -> None:
    """os.<call> raises this error so many times, for paths (or, for read, always) that have `of` in them."""
    whole, left = getattr(os, call), [times]

    def failing(first, *others, **named):
        if left[0] and (isinstance(first, int) or of in os.fsdecode(first)):
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        return whole(first, *others, **named)

    monkeypatch.setattr(os, call, failing)
