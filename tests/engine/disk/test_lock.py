"""The lock says that a job has the directory only when one has, and never writes where it should not (kills: test_kills.py)."""

import errno
import fcntl
import os
import socket

import pytest

from engine.disk import lock
from engine.disk.lock import Lock


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EIO, errno.EOPNOTSUPP, errno.ESTALE])
def test_a_file_system_without_locks_is_not_taken_for_another_job(tmp_path, monkeypatch, code):
    monkeypatch.setattr(fcntl, "lockf", lambda *_: (_ for _ in ()).throw(OSError(code, os.strerror(code))))
    with pytest.raises(OSError, match="has no locks that work") as refused:
        Lock(tmp_path)
    line = str(refused.value)
    assert refused.value.errno == code and "\n" not in line
    assert "another file system" in line and "in use" not in line and str(tmp_path) in line
    monkeypatch.undo()
    Lock(tmp_path).release()  # nothing is left of the attempt


@pytest.mark.parametrize("code", [errno.EACCES, errno.EAGAIN])
def test_a_lock_that_another_has_is_said_so(tmp_path, monkeypatch, code):
    monkeypatch.setattr(fcntl, "lockf", lambda *_: (_ for _ in ()).throw(OSError(code, os.strerror(code))))
    with pytest.raises(ValueError, match="is in use by another job"):
        Lock(tmp_path)


@pytest.mark.parametrize("target", ["a file", "nothing", "a directory"])
def test_a_lock_that_is_a_link_is_refused_and_what_it_leads_to_stays(tmp_path, target):
    victim = tmp_path / "victim"
    if target == "a file":
        victim.write_text("not ours")
    elif target == "a directory":
        victim.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "lock").symlink_to(victim)
    with pytest.raises(ValueError, match=r"lock is a link, .*move it away"):
        Lock(tmp_path / "out")
    assert (tmp_path / "out" / "lock").is_symlink()
    assert victim.exists() == (target != "nothing")
    assert target != "a file" or victim.read_text() == "not ours"


@pytest.mark.parametrize("kind", ["directory", "fifo", "socket"])
def test_a_lock_that_is_no_file_is_refused_and_nobody_waits_for_it(tmp_path, kind):
    path = tmp_path / "lock"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.path.relpath(path))  # a socket's path has little room
    with pytest.raises(ValueError, match="lock is no file"):
        Lock(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"\x1b]0;title\x07\x1b[31mred" * 30,
        bytes(range(256)) * 100,
        b"[" * 4096,
        b'{"process": "\\u001b[2J", "host": "\\ud800", "since": ["x"]}',
        b"\xff\xfe",
        "é".encode() * 2047 + b"x",
    ],
)
def test_what_the_file_holds_is_shown_short_and_escaped(tmp_path, content):
    (tmp_path / "lock").write_bytes(content)
    held = Lock(tmp_path)
    assert held.left_by and len(held.left_by) <= 150 and held.left_by.isprintable()
    held.left_by.encode("utf-8")
    held.release()


def test_a_lock_that_cannot_be_read_still_locks_and_says_why_it_does_not_know(tmp_path, monkeypatch):
    (tmp_path / "lock").write_text("somebody")
    monkeypatch.setattr(os, "pread", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    held = Lock(tmp_path)
    assert "Input/output error" in held.left_by
    held.release()


def test_a_directory_that_is_gone_is_said_to_be_gone(tmp_path):
    with pytest.raises(OSError, match="the output directory is not there any more") as gone:
        Lock(tmp_path / "gone")
    assert str(tmp_path / "gone") in str(gone.value)


def test_a_lock_whose_directory_goes_meanwhile_is_given_back_all_the_same(tmp_path):
    (tmp_path / "out").mkdir()
    held = Lock(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "moved")
    held.release()
    (tmp_path / "out").mkdir()
    Lock(tmp_path / "out").release()


def test_a_link_to_the_output_directory_is_the_same_lock(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    held = Lock(tmp_path / "link")
    with pytest.raises(ValueError, match="in use by this very process"):
        Lock(tmp_path / "out")
    held.release()


def test_a_full_disk_leaves_a_lock_without_a_name_and_stops_nobody_who_makes_room(tmp_path, monkeypatch):
    monkeypatch.setattr(
        os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
    )
    held = Lock(tmp_path)
    with pytest.raises(ValueError, match="in use by this very process"):
        Lock(tmp_path)
    held.release()
    monkeypatch.undo()
    assert not lock._locked_here
    again = Lock(tmp_path)
    assert again.left_by is None
    again.release()
