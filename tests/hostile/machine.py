"""Limits of the machine, and what fails in it."""

import errno
import os
import sys

from PIL import Image

from tests.hostile.case import hostile


def _no_stdout():
    os.close(1)
    sys.stdout = None


@hostile(0, "", fault=_no_stdout)
def no_stdout_at_all(directory): ...


@hostile(1, "error: ", limits={"RLIMIT_NOFILE": 12})
def hardly_any_open_files(directory): ...


@hostile(1, "error: ", limits={"RLIMIT_FSIZE": 3000})
def no_file_above_3000_bytes(directory): ...


def _no_fork():
    def refuse():
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    os.fork = refuse


@hostile(1, "data.workers", fault=_no_fork)
def a_limit_on_processes(directory):
    return ["data.workers=2"]


def _no_thread():
    import threading

    def refuse(self):
        raise RuntimeError("can't start new thread")

    threading.Thread.start = refuse


@hostile(1, "thread", fault=_no_thread)
def a_limit_on_threads(directory): ...


def _no_locks():
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    fcntl.lockf = refuse


@hostile(1, "lock", fault=_no_locks)
def a_file_system_without_locks(directory): ...


def _no_access():
    real = os.open

    def refuse(path, *arguments, **options):
        if os.fsencode(path).endswith(b"01.jpg"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path, *arguments, **options)

    os.open = refuse


@hostile(1, "Permission denied", fault=_no_access)
def an_image_that_may_not_be_read(directory):
    return ["steps=6"]


def _no_space():
    real = os.writev

    def refuse(handle, parts):
        raise OSError(errno.ENOSPC, "No space left on device")

    os.writev = refuse
    assert real


@hostile(1, "No space left", fault=_no_space)
def a_full_disk(directory): ...


def _no_memory():
    import simplejpeg

    def refuse(*_, **__):
        raise MemoryError

    Image.open = simplejpeg.decode_jpeg = refuse


@hostile(1, "emory", fault=_no_memory)
def no_memory_to_decode(directory): ...
