"""The host memory that there is: the machine's, or the least limit of the control groups above, of either version."""

from pathlib import Path

import pytest

from engine.profiling import limits
from engine.profiling.limits import group_bytes, host_limit, killed_for_memory


@pytest.fixture(params=[1, 2], ids="version {}".format)
def group(tmp_path, monkeypatch, request) -> tuple[Path, dict[str, str]]:
    """The directory of this process's group, two below the top, and the names of its files."""
    first = request.param == 1
    here = tmp_path / ("memory/jobs/mine" if first else "jobs/mine")
    here.mkdir(parents=True)
    (tmp_path / "cgroup.controllers").write_text("memory\n")
    own = tmp_path / "proc-cgroup"
    own.write_text("5:cpu,cpuacct:/elsewhere\n4:memory:/jobs/mine\n0::/\n" if first else "0::/jobs/mine\n")
    real = Path.read_text
    monkeypatch.setattr(
        limits.Path, "read_text", lambda path, **how: real(own if str(path) == "/proc/self/cgroup" else path, **how)
    )
    names = {"limit": "memory.limit_in_bytes", "now": "memory.usage_in_bytes", "events": "memory.oom_control"}
    return here, names if first else {"limit": "memory.max", "now": "memory.current", "events": "memory.events"}


def test_the_least_limit_counts_and_is_named(group, tmp_path):
    here, names = group
    assert host_limit(tmp_path).words == "the machine's memory"
    (here / names["limit"]).write_text("max\n" if names["limit"] == "memory.max" else f"{2**63 - 4096}\n")
    assert host_limit(tmp_path).words == "the machine's memory"
    (here.parent / names["limit"]).write_text(f"{2**20}\n")
    assert host_limit(tmp_path) == (2**20, "the limit of the control group jobs")
    (here / names["limit"]).write_text(f"{2**19}\n")
    assert host_limit(tmp_path) == (2**19, "the limit of the control group mine")


def test_what_the_group_takes_and_how_often_the_kernel_killed_in_it_are_read(group, tmp_path):
    here, names = group
    assert group_bytes(tmp_path) is None and killed_for_memory(tmp_path) == 0
    (here / names["now"]).write_text("4096\n")
    (here / names["events"]).write_text("low 0\noom 3\noom_kill 2\n")
    assert group_bytes(tmp_path) == 4096 and killed_for_memory(tmp_path) == 2
