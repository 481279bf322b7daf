"""A run on two hosts: what it ends with through DeepSpeed's launcher, and what it leaves where each host has a disk of its own."""

import json
import shutil
import signal
import subprocess
import sys

import psutil
import pytest

from tests.conftest import REPOSITORY, TINY
from tests.pooled_start import pooled_start
from tests.two_hosts import RANKS, Hosts, why_not, why_not_by_ssh

# Each launch imports torch three times: in the launcher, in what it starts on a host, in the rank.
pytestmark = pytest.mark.timeout(600)

WORDS = ("log_every=5", "checkpoint.every_steps=10")
STEPS, MORE_STEPS = 25, 40  # blocks leave for the disk from step 10 on, and the first come back at 30
BY_SSH = why_not_by_ssh() is None


@pytest.fixture(autouse=True, scope="module")
def _possible():
    if reason := why_not():
        pytest.skip(reason)


def arguments(directory, output, *words):
    """Those of a run of STEPS steps, and a config in `directory` for it."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(TINY))
    return ["--config", str(directory / "config.json"), f"output={output}", f"steps={STEPS}", *WORDS, *words]


def launch(directory, output, *words, launcher=True, **hosts):
    """Run launch.py on hosts as they are asked for, which ends well; returns what was said."""
    given = arguments(directory, output, *words)
    with Hosts(directory=directory, **hosts) as those:
        code, said = (those.deepspeed if launcher else those.python)("launch.py", *given)
        print(f"{those.way}\n{said}")
        assert code == 0, said
    return said


def read(output, name):
    return json.loads((output / name).read_text())


def losses(output):
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def paths(root):
    return {path.relative_to(root) for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def on_one_host(_possible, tmp_path_factory):
    """The output of the same run by as many ranks on this machine, without a launcher; nobody writes into it."""
    directory = tmp_path_factory.mktemp("one-host")
    start = pooled_start(
        arguments(directory, directory / "run"), directory, count=RANKS, drawings=False, timeout_seconds=300
    )
    assert start.code == 0, start
    return directory / "run"


@pytest.mark.parametrize("by_ssh", [BY_SSH], ids=["by-ssh" if BY_SSH else "without-ssh"])
def test_a_run_on_two_hosts_ends_with_the_digest_of_one_host(on_one_host, tmp_path, by_ssh):
    output = tmp_path / "run"
    said = launch(tmp_path, output, count=2, by_ssh=by_ssh)
    assert ("10.77.0.1: finished after" in said) == by_ssh  # pdsh says whose line it is
    summary, expected = read(output, "summary.json"), read(on_one_host, "summary.json")
    assert summary["status"] == "finished" and summary["steps"] == STEPS
    assert summary["ranks"] == expected["ranks"] == RANKS
    assert losses(output) == losses(on_one_host) and len(losses(output)) == STEPS // 5
    assert summary["digest"] == expected["digest"]


def test_where_each_host_has_a_disk_of_its_own_the_merged_checkpoints_go_on_in_one_process(on_one_host, tmp_path, run):
    own = tmp_path / "own"
    launch(tmp_path, own / "run", "ranks.own_disks=true", count=2, own=own, launcher=False)
    assert not list(own.iterdir()), "what the hosts wrote at this path is on their disks"
    first, second = (tmp_path / f"disk-{number}" / "run" for number in range(2))
    assert read(first, "summary.json")["digest"] == read(on_one_host, "summary.json")["digest"]

    parts = [paths(root / "checkpoints") for root in (first, second)]
    assert not parts[0] & parts[1], "a name on both disks"
    assert all(any(path.parts[0] == "rows" for path in part) for part in parts)
    merged_output, run.output = run.output, tmp_path / "alone"
    shutil.copytree(second, run.output)
    assert run(f"steps={MORE_STEPS}", *WORDS) == 2, (
        "one node's part is no run, and must not be taken for what nobody needs"
    )
    assert paths(run.output / "checkpoints") == parts[1]
    run.output = merged_output

    shutil.copytree(first, run.output)
    shutil.copytree(second / "checkpoints", run.output / "checkpoints", dirs_exist_ok=True)
    assert run(f"steps={MORE_STEPS}", *WORDS) == 0
    merged = run.summary()
    assert merged["status"] == "finished" and merged["ranks"] == 1 and merged["steps"] == MORE_STEPS

    run.output = tmp_path / "from-one-host"
    shutil.copytree(on_one_host, run.output)
    assert run(f"steps={MORE_STEPS}", *WORDS) == 0
    assert merged["digest"] == run.summary()["digest"]


def test_no_host_outlives_the_process_that_made_it(tmp_path):
    lines = [
        "import pathlib, sys, time",
        "from tests.two_hosts import Hosts",
        f"hosts = Hosts(2, pathlib.Path(sys.argv[1]), by_ssh={BY_SSH})",
        "print(*(host.pid for host in hosts.hosts), flush=True)",
        "time.sleep(600)",
    ]
    maker = subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines), tmp_path], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    with maker:
        shells = [psutil.Process(int(pid)) for pid in maker.stdout.readline().split()]
        servers = [child for shell in shells for child in shell.children()]
        inside = [process for shell in shells for process in (shell, *shell.children(recursive=True))]
        maker.send_signal(signal.SIGKILL)
    # Each with its sshd, below which may be what is left of the connection by which one waited for it.
    assert len(shells) == 2 and len(servers) == (2 if BY_SSH else 0)
    assert not psutil.wait_procs(inside, timeout=20)[1]
