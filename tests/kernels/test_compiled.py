"""Libraries are built once, found again, never stale, and their absence is a reason and not an accident.

An op's namespace can be registered once in a process, so whatever loads a library does it in a process of its own.
"""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from kernels import compiled
from kernels.compiled import Choice, NotCompiled, choose
from tests.kernels.choosing_processes import CPU, OP, answer, ended, libraries, needs_compiler, start


def build_one_ahead(words: list[str]) -> int:
    """Build the op's library into the directory that `words` names, and print its path."""
    compiled.BUILT, compiled.ops = Path(words[0]), lambda device: [OP]
    print(json.dumps([str(library) for library in compiled.build_ahead("cpu")]))
    return 0


def ask_in_three_threads(words: list[str]) -> int:
    before = dict(os.environ)
    threads = [threading.Thread(target=compiled.load, args=(OP, "cpu")) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dict(os.environ) == before
    return 0


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In this process: an empty cache, nothing built ahead, nothing loaded or refused before."""
    monkeypatch.setenv("PIC_KERNELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compiled, "BUILT", tmp_path / "built")
    monkeypatch.setattr(compiled, "_KNOWN", {})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, compiler: str) -> Path:
    """A cache in which a build was killed, others left their directories, and then two processes built at once."""
    directory = tmp_path_factory.mktemp("shared")
    path = directory / "cache"
    slow = directory / "slow-compiler"
    slow.write_text("#!/bin/sh\nexec sleep 300\n")
    slow.chmod(0o755)
    with start(path, CXX=str(slow)) as killed:
        deadline = time.monotonic() + 60
        while not list(path.glob("building-*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        os.killpg(killed.pids[0], signal.SIGKILL)
    assert list(path.glob("building-*")), "it was killed before it began to build"
    assert not libraries(path)

    old = path / "building-old"
    old.mkdir()
    (old / "lock").touch()
    (old / f"{OP}.so").write_text("half a library")
    os.utime(old, (time.time() - 2 * 86_400,) * 2)
    builders = [start(path, CXX=compiler) for _ in range(2)]
    for name, why in map(answer, builders):
        assert name == "cpu", why
    return path


@needs_compiler
def test_two_processes_that_build_at_once_leave_one_library(cache):
    (library,) = libraries(cache)
    assert library.name.startswith(f"{OP}-cpu-")


@needs_compiler
def test_what_killed_builds_left_is_neither_used_nor_kept_for_ever(cache):
    left = [path.name for path in cache.glob("building-*")]
    assert len(left) == 1  # of the one that was killed a moment ago, since it might be alive
    assert "building-old" not in left


@needs_compiler
def test_a_library_is_found_again_without_a_compiler(cache):
    (library,) = libraries(cache)
    written = library.stat().st_mtime_ns
    assert answer(start(cache, CXX="no-such-compiler")) == ["cpu", f"compiled: {library}"]
    assert library.stat().st_mtime_ns == written


@needs_compiler
def test_a_library_uses_the_threads_of_torch(cache):
    """at::parallel_for is a plain loop where OpenMP is off, and a second runtime would bring a second set of threads."""
    (library,) = libraries(cache)
    assert b"GOMP_parallel" in library.read_bytes() or b"__kmpc_fork_call" in library.read_bytes()
    assert b"libgomp" not in library.read_bytes()


@needs_compiler
def test_what_is_built_ahead_runs_without_a_compiler_and_a_cache(tmp_path, compiler):
    built = tmp_path / "ahead"
    paths = answer(start(tmp_path / "cache", str(built), program=build_one_ahead, CXX=compiler))
    assert [str(path) for path in built.iterdir()] == paths
    if not compiled._can_run_prebuilt("cpu"):
        pytest.skip("this CPU is older than what is built ahead")
    name, why = answer(start(tmp_path / "cache", str(built), CXX="no-such-compiler"))
    assert (name, why) == ("cpu", f"compiled: {paths[0]}")
    assert not (tmp_path / "cache").exists()


@needs_compiler
def test_a_compiler_that_fails_is_quoted(monkeypatch, tmp_path):
    failing = tmp_path / "failing-compiler"
    failing.write_text(
        '#!/bin/sh\ncase "$*" in *-c*) echo "cpu.cpp:1:1: error: no such luck" >&2; exit 3;; *) exec c++ "$@";; esac\n'
    )
    failing.chmod(0o755)
    for compiler, words in ((str(failing), "no such luck"), ("false", "the compiler failed")):
        monkeypatch.setenv("CXX", compiler)
        compiled._KNOWN.clear()
        choice = choose(OP, CPU)
        assert choice.name == "aten"
        assert "the compiler failed" in choice.why and words in choice.why
        assert not list((tmp_path / "cache").iterdir())


def test_without_a_compiler_aten_runs_and_the_reason_says_what_to_install(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    choice = choose(OP, CPU)
    assert choice.name == "aten"
    assert "there is no C++ compiler (no-such-compiler); install g++" in choice.why
    assert "python -m kernels.compiled" in choice.why


def test_compiled_kernels_that_were_asked_for_and_cannot_be_had_are_an_error(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"compiled kernels were asked for: .*no C\+\+ compiler"):
        choose(OP, CPU, "compiled")
    assert choose(OP, CPU, "aten") == Choice("aten", "asked for")


def test_a_build_that_failed_is_not_tried_again(monkeypatch):
    attempts = []

    def fail(*arguments: object) -> None:
        attempts.append(arguments)
        raise NotCompiled("it rains")

    monkeypatch.setattr(compiled, "_build", fail)
    assert [choose(OP, CPU).why for _ in range(3)] == [f"{OP}: it rains"] * 3
    assert len(attempts) == 1


def test_without_a_gpu_cuda_is_not_built(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    choice = choose(OP, torch.device("cuda"))
    assert choice == Choice("aten", f"{OP}: no CUDA device to build for")


def test_a_library_that_does_not_load_is_as_good_as_none(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    for directory, flags in (
        (tmp_path / "cache", compiled._tuned_flags("cpu")),
        (tmp_path / "built", compiled._portable_flags("cpu")),
    ):
        directory.mkdir()
        (directory / compiled._name(OP, "cpu", flags)).write_text("of another C library")
    assert "no C++ compiler" in choose(OP, CPU).why


@needs_compiler
def test_a_cache_that_cannot_be_written_is_a_reason(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PIC_KERNELS_CACHE", str(tmp_path / "file" / "cache"))
    choice = choose(OP, CPU)
    assert choice.name == "aten"
    assert "set PIC_KERNELS_CACHE to a directory that this machine can write to" in choice.why


@pytest.mark.parametrize(
    ("device", "wanted", "words"),
    [
        ("meta", "auto", "row_update runs on cpu and cuda, not on meta: move the tensors"),
        ("cpu", "fast", "no implementation is called 'fast'; choose auto, compiled or aten"),
    ],
)
def test_other_devices_and_words_are_refused(device, wanted, words):
    with pytest.raises(ValueError, match=words):
        choose(OP, torch.device(device), wanted)


def test_the_cache_is_where_it_is_asked_to_be(monkeypatch, tmp_path):
    assert compiled.cache_directory() == tmp_path / "cache"
    monkeypatch.delenv("PIC_KERNELS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert compiled.cache_directory() == tmp_path / "xdg" / "pic-engine" / "kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert compiled.cache_directory() == tmp_path / "home" / ".cache" / "pic-engine" / "kernels"


def test_a_user_without_a_home_or_with_one_that_is_closed_gets_aten_and_the_reason(monkeypatch, tmp_path):
    monkeypatch.delenv("PIC_KERNELS_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    assert "set PIC_KERNELS_CACHE" in choose(OP, CPU).why

    def closed(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(compiled, "_KNOWN", {})
    monkeypatch.setenv("PIC_KERNELS_CACHE", str(tmp_path))
    monkeypatch.setattr(compiled, "unsafe_directory", closed)
    choice = choose(OP, CPU)
    assert choice.name == "aten"
    assert "Permission denied" in choice.why


@needs_compiler
def test_threads_that_ask_at_once_get_one_library_and_leave_the_environment_as_it_was(tmp_path, compiler):
    done = ended(start(tmp_path / "cache", program=ask_in_three_threads, CXX=compiler))
    assert done.err.count(f"compiling {OP} for cpu") == 1


def test_whatever_changes_the_library_changes_its_name(monkeypatch, tmp_path):
    shutil.copytree(compiled.ROOM / OP, tmp_path / OP)
    (tmp_path / "other").mkdir()
    monkeypatch.setattr(compiled, "ROOM", tmp_path)

    def name() -> str:
        return compiled._name(OP, "cpu", compiled._tuned_flags("cpu"))

    names = [name()]
    assert name() == names[0]
    (tmp_path / OP / "aten.py").write_text("")  # is not compiled
    (tmp_path / "other" / "cpu.cpp").write_text("")  # nor is another op's source
    assert name() == names[0]
    for change in ("step.h", "cpu.cpp"):
        with open(tmp_path / OP / change, "a", encoding="utf-8") as file:
            file.write("\n")
        names.append(name())
    (tmp_path / "other" / "shared.h").write_text("")
    names.append(name())
    monkeypatch.setattr(compiled, "_cpu_features", lambda: "another CPU")
    names.append(name())
    monkeypatch.setattr(torch, "__version__", "9.9")
    names.append(name())
    names.append(compiled._name(OP, "cpu", compiled._portable_flags("cpu")))
    assert len(set(names)) == len(names) == 7


def test_a_source_asks_for_flags_of_its_own(tmp_path):
    source = tmp_path / "cpu.cpp"
    source.write_text("// compile: -DONE -DTWO\nint x;\n// compile: -DTHREE\n")
    assert compiled._own_flags(source) == ["-DONE", "-DTWO", "-DTHREE"]
    assert compiled._own_flags(compiled.ROOM / "catch_up" / "cpu.cpp") == ["-ffp-contract=off"]
    assert compiled._own_flags(compiled.ROOM / OP / "cpu.cpp") == []


def test_every_op_with_cuda_sources_has_all_of_them():
    assert {OP, "catch_up"} <= set(compiled.ops("cpu")) & set(compiled.ops("cuda"))
    for op in compiled.ops("cuda"):
        assert (compiled.ROOM / op / "cuda.cu").exists()


def test_the_command_line_says_why_it_built_nothing(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SystemExit, match="there is no C\\+\\+ compiler"):
        compiled.main(["cpu"])
