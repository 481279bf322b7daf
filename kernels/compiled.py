"""Builds and loads an op's C++ and CUDA sources, through torch's extension API, at first use.

    kernels/<op>/cpu.cpp                        -> "cpu",  torch.ops.pic_<op>_cpu
    kernels/<op>/cuda.cu (kernels), cuda.cpp    -> "cuda", torch.ops.pic_<op>_cuda

A library is built in a directory of its own and renamed into the cache: a killed build leaves no lock and no half a file, and
two processes that build at once both succeed. Its name carries a hash of the sources, the flags, torch's version and, because
CPU code is tuned to the machine, the CPU's features; so nothing stale is ever loaded. Its last bytes are a checksum of all others,
because loading a library that was cut short kills the process; and nothing is loaded from a cache where others than this user and
root may write (kernels/trusted.py). A C++ source may ask for flags of its own in a line "// compile: -ffp-contract=off". `load`
looks, in this order:

    1. the cache: $PIC_KERNELS_CACHE, else ~/.cache/pic-engine/kernels
    2. kernels/built, where `python -m kernels.compiled` puts libraries for machines without a compiler (x86-64-v3: AVX2)
    3. the compiler

Where all three fail it says what is wrong with each; the ATen implementations need none of this.

    python -m kernels.compiled [cpu] [cuda]     build ahead of time into kernels/built (both, where nvcc exists)
    python -m kernels.compiled --check-cuda     compile the CUDA sources for sm_80 and sm_90 and throw the result away
"""

import argparse
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kernels.trusted import Refused, checked_library, make_directory, seal, unsafe_directory

ROOM = Path(__file__).parent
BUILT = ROOM / "built"
CUDA_ARCHITECTURES = ("8.0", "9.0")
# Without -fopenmp at::parallel_for is a plain loop. It is for compiling only: the runtime is the one torch has loaded.
_CPP_FLAGS = ["-O3", "-std=c++20", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]
_NVCC_FLAGS = ["-O3", "-std=c++17", "-lineinfo"]
_DAY_SECONDS = 86_400
_HEARD: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "errors": "replace"}


class NotCompiled(RuntimeError):
    """There is no compiled library for this op and device; the message says why and what would help."""


@dataclass(frozen=True)
class Choice:
    """The implementation that runs an op: "cpu" or "cuda" (compiled), or "aten"; and why it is that one."""

    name: str
    why: str


def choose(op: str, device: torch.device, wanted: str = "auto") -> Choice:
    """Which implementation of an op runs on a device.

    wanted   "auto": the compiled one where there is one, else "aten" with the reason; "compiled": no other will do; "aten"

    Raises ValueError for another device or word, and where "compiled" cannot be had.
    """
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"{op} runs on cpu and cuda, not on {device.type}: move the tensors")
    if wanted not in ("auto", "compiled", "aten"):
        raise ValueError(f"{op}: no implementation is called {wanted!r}; choose auto, compiled or aten")
    if wanted == "aten":
        return Choice("aten", "asked for")
    try:
        return Choice(device.type, f"compiled: {load(op, device.type)}")
    except NotCompiled as error:
        if wanted == "compiled":
            raise ValueError(f"compiled kernels were asked for: {error}") from error
        return Choice("aten", str(error))


def ops(device: str) -> list[str]:
    """The op folders that have sources for a device, "cpu" or "cuda"."""
    return sorted(path.parent.name for path in ROOM.glob(f"*/{device}.cpp"))


_LOCK = threading.Lock()  # an op's namespace can be registered once in a process
_KNOWN: dict[tuple[str, str], Path | str] = {}  # the library that is loaded, or why there is none


def load(op: str, device: str) -> Path:
    """Make torch.ops.pic_<op>_<device> exist; returns the library. Raises NotCompiled; asked again, it says the same."""
    with _LOCK:
        if (op, device) not in _KNOWN:
            try:
                _KNOWN[op, device] = _load(op, device)
            except NotCompiled as error:
                _KNOWN[op, device] = str(error)
        known = _KNOWN[op, device]
    if isinstance(known, str):
        raise NotCompiled(known)
    return known


_ANOTHER_CACHE = "set PIC_KERNELS_CACHE to a directory that this machine can write to and run code from"


def _load(op: str, device: str) -> Path:
    refusals: list[str] = []
    cache = _own_cache(refusals)
    try:
        cached = cache and cache / _name(op, device, _tuned_flags(device))
        if cached and _is_loaded(cached, refusals, "it is compiled anew"):
            return cached
        prebuilt = BUILT / _name(op, device, _portable_flags(device))
        again = "build it again with python -m kernels.compiled"
        if _can_run_prebuilt(device) and _is_loaded(prebuilt, refusals, again, is_cache=False):
            return prebuilt
        if device == "cuda" and not torch.cuda.is_available():
            raise NotCompiled("no CUDA device to build for")
        if cached is None:
            raise NotCompiled(refusals.pop(0))
        _build(op, device, _tuned_flags(device), cached)
        if not _is_loaded(cached, refusals, "see that there is room"):
            raise NotCompiled(f"{refusals.pop()}; {_ANOTHER_CACHE}")
        return cached
    except NotCompiled as error:
        raise NotCompiled("; ".join([f"{op}: {error}", *refusals])) from error
    except OSError as error:
        raise NotCompiled("; ".join([f"{op}: {error}", _ANOTHER_CACHE, *refusals])) from error


def _own_cache(refusals: list[str]) -> Path | None:
    """The cache, where nobody else can have put a library; else None, and why goes into `refusals`."""
    try:
        cache = cache_directory()
        if (unsafe := unsafe_directory(cache)) is None:
            return cache
        _refuse(refusals, f"nothing is loaded from {cache} or kept there: {unsafe}, or {_ANOTHER_CACHE}")
    except OSError as error:
        _refuse(refusals, f"{error}; {_ANOTHER_CACHE}")
    return None


def _is_loaded(library: Path, refusals: list[str], remedy: str, is_cache: bool = True) -> bool:
    """Load a library that is there and may be; else False, with why in `refusals`. remedy: what happens to one that is not whole."""
    try:
        if (checked := checked_library(library, is_cache)) is None:
            return False
        torch.ops.load_library(str(checked))
        return True
    except Refused as error:
        _refuse(refusals, f"{error}; {remedy}" if error.is_damaged else str(error))
    except OSError as error:
        # It was built for another C library, say, in a home that machines share: build it here.
        _refuse(refusals, f"{library} does not load: {error}")
    return False


def _refuse(refusals: list[str], why: str) -> None:
    """Said at once: what is used in its place may take its time."""
    refusals.append(why)
    print(f"kernels: {why}", file=sys.stderr, flush=True)


def cache_directory() -> Path:
    """Where libraries built at first use are kept. OSError where this user has no home and no variable names another place.

    An empty variable is one that is not set, and so is a relative XDG_CACHE_HOME, as its specification says.
    """
    chosen, caches = (os.environ.get(name, "").strip() for name in ("PIC_KERNELS_CACHE", "XDG_CACHE_HOME"))
    try:
        if chosen:
            return Path(chosen).expanduser().absolute()
        return Path(caches if os.path.isabs(caches) else Path.home() / ".cache") / "pic-engine" / "kernels"
    except RuntimeError as error:
        raise OSError(str(error)) from error


def build_ahead(device: str) -> list[Path]:
    """Build every op of a device into kernels/built, for machines that have no compiler. Raises NotCompiled."""
    libraries = []
    for op in ops(device):
        flags = _portable_flags(device)
        libraries.append(BUILT / _name(op, device, flags))
        _build(op, device, flags, libraries[-1])
    return libraries


def compile_cuda() -> list[str]:
    """Compile each op's cuda.cu for sm_80 and sm_90, and its binding against torch; returns what was compiled.

    Needs nvcc, no GPU and no CUDA libraries. nvcc hands the binding on to the C++ compiler, with its own headers. Raises
    NotCompiled with the compiler's words.
    """
    nvcc = _nvcc()
    if nvcc is None:
        raise NotCompiled("no nvcc: the CUDA sources were not compiled")
    done = []
    with tempfile.TemporaryDirectory() as scratch:
        for op in ops("cuda"):
            for architecture in CUDA_ARCHITECTURES:
                sm = "sm_" + architecture.replace(".", "")
                _run([nvcc, *_NVCC_FLAGS, f"-arch={sm}", "-c", str(ROOM / op / "cuda.cu"), "-o", f"{scratch}/{op}.o"])
                done.append(f"{op}/cuda.cu for {sm}")
            binding = ROOM / op / "cuda.cpp"
            words = ",".join([*_CPP_FLAGS, *_own_flags(binding), "-fsyntax-only"])
            _run([nvcc, f"-Xcompiler={words}", *_torch_includes(), "-c", str(binding), "-o", f"{scratch}/{op}.o"])
            done.append(f"{op}/cuda.cpp")
    return done


def _build(op: str, device: str, flags: dict[str, list[str]], library: Path) -> None:
    lacks = missing(device)
    if lacks:
        raise NotCompiled(lacks)
    make_directory(library.parent, 0o777 if library.parent == BUILT else 0o700)
    _sweep(library.parent)
    sources = [ROOM / op / f"{device}.cpp"] + ([ROOM / op / "cuda.cu"] if device == "cuda" else [])
    print(f"compiling {op} for {device}: once, it is kept in {library.parent}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="building-") as directory:
        # Loaded by a process that then ends: here the library is loaded once, under its final name.
        words = [op, *map(str, sources)]
        script = (
            "import sys, torch.utils.cpp_extension as extension\n"
            f"extension.load(sys.argv[1], sys.argv[2:], extra_cflags={flags['cpp'] + _own_flags(sources[0])!r}, "
            f"extra_cuda_cflags={flags['nvcc']!r}, build_directory={directory!r}, with_cuda={device == 'cuda'}, "
            "is_python_module=False)\n"
        )
        _run([sys.executable, "-W", "ignore", "-c", script, *words], _build_environment(flags))
        seal(Path(directory) / f"{op}.so", Path(directory) / "sealed")
        os.replace(Path(directory) / "sealed", library)


def _sources(op: str, device: str) -> list[Path]:
    """Whatever a change of which means another library."""
    own = [path for path in (ROOM / op).iterdir() if path.suffix in (".cpp", ".cu", ".h", ".cuh")]
    return sorted(own + [path for path in ROOM.glob("*/*.h") if path.parent.name != op])


def _own_flags(source: Path) -> list[str]:
    """What a source asks for beyond the flags of all; part of the library's name because the source is."""
    asked = [line.split("// compile:")[1].split() for line in source.read_text().splitlines() if "// compile:" in line]
    return [flag for flags in asked for flag in flags]


def _name(op: str, device: str, flags: dict[str, list[str]]) -> str:
    digest = hashlib.sha256()
    for path in _sources(op, device):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    digest.update(repr((flags, torch.__version__, platform.machine(), sys.platform)).encode())
    return f"{op}-{device}-{digest.hexdigest()[:16]}.so"


def _tuned_flags(device: str) -> dict[str, list[str]]:
    """Flags for this machine's CPU and GPU; the CPU's features are spelled out because they are part of the name."""
    if device == "cuda":
        available = torch.cuda.is_available()
        major, minor = torch.cuda.get_device_capability() if available else (0, 0)
        return {"cpp": _CPP_FLAGS, "nvcc": _NVCC_FLAGS, "architectures": [f"{major}.{minor}"]}
    features = _cpu_features()
    if features is None:  # a library for this CPU could not be told from one for another
        return _portable_flags(device)
    return {"cpp": [*_CPP_FLAGS, "-march=native", f"-DPIC_CPU={features}"], "nvcc": [], "architectures": []}


def _portable_flags(device: str) -> dict[str, list[str]]:
    if device == "cuda":
        return {"cpp": _CPP_FLAGS, "nvcc": _NVCC_FLAGS, "architectures": list(CUDA_ARCHITECTURES)}
    march = ["-march=x86-64-v3"] if platform.machine() == "x86_64" else []
    return {"cpp": _CPP_FLAGS + march, "nvcc": [], "architectures": []}


def _can_run_prebuilt(device: str) -> bool:
    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    return platform.machine() != "x86_64" or torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


@functools.cache
def _cpu_features() -> str | None:
    """A hash of the features that the kernel lists for this CPU; None where it lists none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    features = next((line for line in lines if line.startswith(("flags", "Features"))), None)
    return hashlib.sha256(features.encode()).hexdigest()[:8] if features else None


def _compiler() -> str:
    """The command, with its words; a variable that is empty is one that is not set."""
    return os.environ.get("CXX", "").strip() or "c++"


def _nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME", "").strip()
    return shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")


def _toolkit() -> str | None:
    """The CUDA toolkit's directory, by nvcc's own account: torch goes by nvcc's path, which may be a script elsewhere."""
    nvcc = _nvcc()
    if nvcc is None:
        return None
    plan = [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull]
    said = subprocess.run(plan, check=False, **_HEARD).stdout
    tops = [line.split("TOP=")[1].strip() for line in said.splitlines() if "TOP=" in line]
    return os.path.realpath(tops[0]) if tops else None


def missing(device: str) -> str | None:
    """What a build would lack, with the way out; None where nothing is."""
    otherwise = "or build the kernels on a machine that has one: python -m kernels.compiled, and copy kernels/built"
    try:
        program = shlex.split(_compiler())[0]
    except ValueError as error:
        return f"the environment variable CXX is {_compiler()!r}: {str(error).lower()}; set it to a C++ compiler, or unset it"
    if shutil.which(program) is None:
        return f"there is no C++ compiler ({_compiler()}); install g++, {otherwise}"
    if shutil.which("ninja", path=_path()) is None:
        return f"there is no ninja; pip install ninja, {otherwise}"
    if device == "cuda" and _nvcc() is None:
        return f"there is no nvcc; install the CUDA toolkit, {otherwise}"
    return None


def _path() -> str:
    """PATH with this Python's own directory, where pip puts ninja."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def _build_environment(flags: dict[str, list[str]]) -> dict[str, str]:
    """The build's environment, for a process of its own: changing ours would show in other threads."""
    changed = {"PATH": _path(), "CXX": _compiler(), "TORCH_CUDA_ARCH_LIST": ";".join(flags["architectures"]) or "8.0"}
    if flags["nvcc"] and (home := _toolkit()):
        changed["CUDA_HOME"] = home
    return {**os.environ, **changed}


def _torch_includes() -> list[str]:
    include = Path(torch.__file__).parent / "include"
    return [f"-I{include}", f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}"]


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    """environment: all of it; None: ours."""
    try:
        finished = subprocess.run(command, check=False, env=environment, **_HEARD)
    except OSError as error:  # a limit on processes
        raise NotCompiled(f"the compiler could not be started: {error.strerror}") from error
    if finished.returncode != 0:
        lines = finished.stdout.splitlines()
        errors = (
            [line for line in lines if "error:" in line] or [line for line in lines if "Error" in line] or lines[-5:]
        )
        words = "\n".join(errors[:5])
        raise NotCompiled(f"the compiler failed ({finished.returncode}):\n{words}")


def _sweep(directory: Path) -> None:
    """Remove what builds that were killed left behind."""
    for path in directory.glob("building-*"):
        try:
            old = time.time() - path.lstat().st_mtime > _DAY_SECONDS
        except FileNotFoundError:  # another process's build that has just ended
            continue
        if old:
            shutil.rmtree(path, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Build the compiled kernels ahead of time.")
    parser.add_argument("devices", nargs="*", choices=["cpu", "cuda", []], help="default: cpu, and cuda where nvcc is")
    parser.add_argument("--check-cuda", action="store_true", help="compile the CUDA sources for sm_80 and sm_90 only")
    arguments = parser.parse_args(argv)
    try:
        if arguments.check_cuda:
            if _nvcc() is None:
                print("no nvcc here: the CUDA sources were not compiled")
            else:
                print("\n".join(f"compiled {what}" for what in compile_cuda()))
            return
        for device in arguments.devices or ["cpu", *(["cuda"] if _nvcc() else [])]:
            for library in build_ahead(device):
                print(library)
    except NotCompiled as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
