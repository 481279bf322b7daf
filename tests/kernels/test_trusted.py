"""A library is loaded where it is whole and nobody else can have put it there; otherwise a line says why and what to do.

Tests run as root too, whom modes do not stop: they look at what is refused, and owners of others are made up.
"""

import os
import shutil
from pathlib import Path

import pytest
import torch

from kernels import compiled, trusted
from kernels.compiled import choose
from kernels.trusted import Refused, checked_library, make_directory, seal, unsafe_directory
from tests.kernels.choosing_processes import (
    CPU,
    OP,
    answer,
    choose_and_compare,
    ended,
    libraries,
    needs_compiler,
    start,
)

OTHER = 4321


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CXX", "CUDA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIC_KERNELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compiled, "BUILT", tmp_path / "built")
    monkeypatch.setattr(compiled, "_KNOWN", {})


def choose_under_an_open_umask(words: list[str]) -> int:
    os.umask(0)
    return choose_and_compare(words)


def choose_what_was_built_ahead(words: list[str]) -> int:
    """As on any machine that can run what was built for others, in the directory that `words` names."""
    compiled.BUILT, compiled._portable_flags = Path(words[0]), compiled._tuned_flags
    compiled._can_run_prebuilt = lambda device: True
    print(compiled.choose(OP, CPU).why)
    return 0


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, compiler: str) -> Path:
    """A cache with one library, made under a umask that forbids nothing; nobody writes into it."""
    path = tmp_path_factory.mktemp("kept") / "above" / "cache"
    name, why = answer(start(path, program=choose_under_an_open_umask, CXX=compiler))
    assert name == "cpu", why
    return path


def copied(kept: Path, cache: Path) -> Path:
    shutil.copytree(kept, cache)
    (library,) = libraries(cache)
    return library


def own(monkeypatch: pytest.MonkeyPatch, strange: Path, owner: int = OTHER, user: int | None = None) -> None:
    """The system says that `strange` is `owner`'s, and that we are `user`."""
    really, user = {name: getattr(os, name) for name in ("stat", "fstat")}, os.geteuid() if user is None else user
    inode = os.stat(strange).st_ino

    def made_up(name: str):
        def call(*what, **how):
            status = really[name](*what, **how)
            return (
                os.stat_result((*status[:4], owner, *status[5:]), {"st_mtime_ns": 0})
                if status.st_ino == inode
                else status
            )

        return call

    for name in really:
        monkeypatch.setattr(trusted.os, name, made_up(name))
    monkeypatch.setattr(trusted.os, "geteuid", lambda: user)


def cut_short(library: Path) -> None:
    os.truncate(library, library.stat().st_size // 2)


def changed_inside(library: Path) -> None:
    with library.open("r+b") as file:
        file.seek(library.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def zeros_at_the_end(library: Path) -> None:
    """A file system that gave the size and lost the bytes."""
    size = library.stat().st_size
    os.truncate(library, size - 8192)
    os.truncate(library, size)


def unsealed(library: Path) -> None:
    """As versions before this one left it."""
    library.write_bytes(library.read_bytes()[: -trusted._SEAL_BYTES])


def emptied(library: Path) -> None:
    library.write_bytes(b"")


DAMAGES = [cut_short, changed_inside, zeros_at_the_end, unsealed, emptied]


@needs_compiler
def test_a_library_that_was_cut_short_is_compiled_anew_with_a_line_and_then_found(kept, tmp_path, compiler):
    """Each start was killed by SIGBUS before, without a word."""
    cache = tmp_path / "cache"
    library = copied(kept, cache)
    cut_short(library)
    done = ended(start(cache, CXX=compiler))
    assert (
        f"{library} has no checksum: it was cut short, or built by an earlier version; it is compiled anew" in done.err
    )
    assert done.err.count("compiling") == 1 and "compiled: " in done.out
    checked_library(library, is_cache=True)
    again = ended(start(cache, CXX="no-such-compiler"))
    assert not again.err and '["cpu"' in again.out


@needs_compiler
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("place", ["cache", "built"])
def test_a_damaged_library_is_never_loaded_and_the_reason_says_so(kept, tmp_path, monkeypatch, capsys, damage, place):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(torch.ops, "load_library", lambda path: pytest.fail(f"{path} was loaded"))
    library = copied(kept, tmp_path / place)
    if place == "built":
        library = library.rename(library.with_name(compiled._name(OP, "cpu", compiled._portable_flags("cpu"))))
        monkeypatch.setattr(compiled, "_can_run_prebuilt", lambda device: True)
    damage(library)
    choice = choose(OP, CPU)
    assert choice.name == "aten"
    remedy = "it is compiled anew" if place == "cache" else "build it again with python -m kernels.compiled"
    for said in (choice.why, capsys.readouterr().err):
        assert str(library) in said and "checksum" in said and remedy in said
    assert "no C++ compiler" in choice.why
    with pytest.raises(ValueError, match="checksum"):
        choose(OP, CPU, "compiled")


@needs_compiler
def test_a_library_that_others_may_have_put_there_is_refused_in_a_line(kept, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(torch.ops, "load_library", lambda path: pytest.fail(f"{path} was loaded"))
    library = copied(kept, tmp_path / "cache")
    for path, mode in ((library, 0o664), (library, 0o646), (library.parent, 0o770), (tmp_path, 0o777)):
        before = path.stat().st_mode
        path.chmod(mode)
        compiled._KNOWN.clear()
        choice = choose(OP, CPU)
        assert choice.name == "aten"
        assert (
            f"others may write to {path} (mode {mode:04o}); chmod go-w {path}, or set PIC_KERNELS_CACHE" in choice.why
        )
        assert "chmod go-w" in capsys.readouterr().err
        path.chmod(before)


@pytest.mark.parametrize("user", [0, 1000], ids=["root", "user"])
def test_what_belongs_to_another_user_is_refused_also_for_root(tmp_path, monkeypatch, user):
    library = tmp_path / "cache" / "a.so"
    library.parent.mkdir(mode=0o700)
    (tmp_path / "made").write_bytes(b"code")
    seal(tmp_path / "made", library)
    for strange in (library, library.parent, tmp_path):
        with monkeypatch.context() as patch:
            own(patch, strange, OTHER, user)
            with pytest.raises(Refused, match=f"{strange} belongs to another user \\({OTHER}\\); chown it to {user}"):
                checked_library(library, is_cache=True)
        with monkeypatch.context() as patch:
            own(patch, strange, user, user)
            assert checked_library(library, is_cache=True) == library
        with monkeypatch.context() as patch:
            own(patch, strange, OTHER, user)
            # The directory kernels/built is as trusted as the code beside it.
            assert checked_library(library, is_cache=False) == library


def test_where_everybody_may_make_names_a_directory_of_ours_is_safe_and_one_of_others_is_not(tmp_path, monkeypatch):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "ours").mkdir(mode=0o700)
    assert unsafe_directory(shared / "ours" / "not" / "yet") is None
    shared.chmod(0o777)
    assert "chmod go-w" in str(unsafe_directory(shared / "ours"))
    shared.chmod(0o1777)
    own(monkeypatch, shared / "ours")
    assert "belongs to another user" in str(unsafe_directory(shared / "ours" / "not" / "yet"))


def test_a_link_does_not_hide_where_a_library_really_lies(tmp_path):
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    (tmp_path / "link").symlink_to(open_to_all)
    assert str(open_to_all) in str(unsafe_directory(tmp_path / "link"))
    (tmp_path / "made").write_bytes(b"code")
    seal(tmp_path / "made", open_to_all / "a.so")
    (tmp_path / "a.so").symlink_to(open_to_all / "a.so")
    with pytest.raises(Refused, match=str(open_to_all)):
        checked_library(tmp_path / "a.so", is_cache=True)


def test_a_library_that_is_replaced_while_it_is_looked_at_is_looked_at_again(tmp_path, monkeypatch):
    library = tmp_path / "a.so"
    (tmp_path / "made").write_bytes(b"code")
    seal(tmp_path / "made", library)
    check, replaced = trusted._check_whole, []

    def and_replace(path: Path, content: bytes) -> None:
        check(path, content)
        if len(replaced) < 2:
            replaced.append(path)
            seal(tmp_path / "made", tmp_path / "new")
            os.replace(tmp_path / "new", library)

    monkeypatch.setattr(trusted, "_check_whole", and_replace)
    assert checked_library(library, is_cache=True) == library
    assert len(replaced) == 2
    monkeypatch.setattr(trusted, "_identity", lambda status: (object(),))
    with pytest.raises(Refused, match="again and again"):
        checked_library(library, is_cache=True)


def test_what_is_no_file_is_neither_loaded_nor_waited_for(tmp_path):
    (tmp_path / "directory.so").mkdir()
    os.mkfifo(tmp_path / "pipe.so")
    for name in ("directory.so", "pipe.so"):
        with pytest.raises(Refused, match="it is no file"):
            checked_library(tmp_path / name, is_cache=True)
    assert checked_library(tmp_path / "nothing.so", is_cache=True) is None


@needs_compiler
def test_a_build_makes_directories_and_files_that_others_cannot_write_whatever_the_umask(kept):
    (library,) = libraries(kept)
    modes = [path.stat().st_mode & 0o777 for path in (kept.parent, kept, library)]
    assert modes == [0o700, 0o700, 0o644]


def test_directories_that_are_made_by_others_meanwhile_are_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(trusted.os.path, "lexists", lambda path: False)
    make_directory(tmp_path / "a" / "b", 0o700)
    make_directory(tmp_path / "a" / "b", 0o700)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"exists|Not a directory"):
        make_directory(tmp_path / "file" / "b", 0o700)


# Variables


@pytest.mark.parametrize("text", ["", " ", "\t "])
def test_an_empty_variable_is_one_that_is_not_set(monkeypatch, tmp_path, text):
    for name in ("CXX", "CUDA_HOME", "XDG_CACHE_HOME", "PIC_KERNELS_CACHE"):
        monkeypatch.setenv(name, text)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compiled._compiler() == "c++"
    assert compiled._build_environment(compiled._tuned_flags("cpu"))["CXX"] == "c++"
    assert compiled.cache_directory() == tmp_path / ".cache" / "pic-engine" / "kernels"
    with monkeypatch.context() as patch:
        asked: list[dict] = []
        patch.setattr(compiled.shutil, "which", lambda name, **how: asked.append(how))
        compiled._nvcc()
        assert asked == [{}]  # on the PATH, not in " /bin"
    compiled.missing("cpu")


@pytest.mark.parametrize("text", ['"g++', "g++ 'x", "c++ \\"])
def test_a_compiler_with_an_open_quote_is_a_reason(monkeypatch, text):
    monkeypatch.setenv("CXX", text)
    choice = choose(OP, CPU)
    assert choice.name == "aten"
    assert "the environment variable CXX is" in choice.why and "set it to a C++ compiler, or unset it" in choice.why


def test_a_relative_cache_is_in_the_present_directory_and_a_relative_xdg_cache_is_none(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIC_KERNELS_CACHE", "here/cache")
    assert compiled.cache_directory() == tmp_path / "here" / "cache"
    monkeypatch.delenv("PIC_KERNELS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "there")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert compiled.cache_directory() == tmp_path / "home" / ".cache" / "pic-engine" / "kernels"
    monkeypatch.setenv("PIC_KERNELS_CACHE", "~nobody-of-this-name/cache")
    assert "set PIC_KERNELS_CACHE" in choose(OP, CPU).why


@needs_compiler
def test_where_the_cache_cannot_be_used_what_was_built_ahead_is_and_a_line_says_why(kept, tmp_path):
    built = tmp_path / "ahead"
    copied(kept, built)
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for cache, said in ((tmp_path / "file" / "cache", "Not a directory"), (tmp_path / "open", "chmod go-w")):
        done = ended(
            start(
                tmp_path / "cache",
                str(built),
                program=choose_what_was_built_ahead,
                CXX="no-such-compiler",
                PIC_KERNELS_CACHE=str(cache),
            )
        )
        assert f"compiled: {built}" in done.out, done.err
        assert said in done.err and "PIC_KERNELS_CACHE" in done.err


def test_a_limit_on_processes_is_no_advice_about_the_cache(monkeypatch):
    def limited(*words, **how):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(compiled, "missing", lambda device: None)
    monkeypatch.setattr(compiled.subprocess, "run", limited)
    choice = choose(OP, CPU)
    assert choice.why == f"{OP}: the compiler could not be started: Resource temporarily unavailable"


def test_what_a_compiler_says_in_another_encoding_is_quoted(monkeypatch, tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_bytes(b"#!/bin/sh\nprintf 'error: caf\\351\\n'; exit 1\n")
    compiler.chmod(0o755)
    with pytest.raises(compiled.NotCompiled, match="error: caf"):
        compiled._run([str(compiler)])
