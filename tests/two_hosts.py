"""Two hosts on one machine, and DeepSpeed's launcher between them: `python -m tests.two_hosts [--without-ssh] [--own-disks]`.

A host is a shell in namespaces of its own: network, mounts, processes, hostname. A veth pair is the cable.

    this machine --+-- node-0   10.77.0.1  veth0 --+   the launcher starts here
                   |                               |
                   +-- node-1   10.77.0.2  veth0 --+   sshd on port 22 of both

By ssh the launcher is started once, on node-0, and reaches both hosts through pdsh, as it does by default: `deepspeed --hostfile ...`.
Each host has an sshd with a throw-away key. Without ssh the launcher is started once on each host: `--no_ssh --node_rank i`.
Both see this machine's files; with own disks each has a directory of its own at one and the same path.

Nothing outlives the process that made the hosts, however it ends. The shell of a host reads from a pipe that this process holds; when
the pipe closes the shell ends, and with it, as the first process of its namespace, all others of the host: sshd, launcher, ranks.
Network and mounts go with the last of them. No namespace has a name and each host has all ports to itself, so that runs cannot clash.

What is left out: GPUs and NCCL, clocks that differ, a network that loses anything, and file systems over a network.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil

from tests.conftest import REPOSITORY, TINY

RANKS = 2
_INTERFACE = "veth0"
_NAMESPACES = ("--net", "--mount", "--uts", "--ipc", "--pid")
_ENVIRONMENT = {
    **os.environ,
    "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin",
}  # where Debian has ip and sshd


def why_not() -> str | None:
    """Why this machine cannot be two hosts; None where it can."""
    if os.geteuid() != 0:
        return "two hosts need root, who may make namespaces"
    if missing := [tool for tool in ("unshare", "nsenter", "ip") if _where(tool) is None]:
        return f"two hosts need {', '.join(missing)}; apt-get install util-linux iproute2"
    veth = ("ip", "link", "add", _INTERFACE, "type", "veth", "peer", "name", "veth1")
    tried = subprocess.run(
        ["unshare", *_NAMESPACES, "--fork", "--mount-proc", *veth], env=_ENVIRONMENT, capture_output=True, text=True
    )
    return f"no namespaces with a veth pair here: {tried.stderr.strip()}" if tried.returncode else None


def why_not_by_ssh() -> str | None:
    """Why the launcher cannot reach the hosts by ssh; None where it can."""
    missing = [tool for tool in ("pdsh", "sshd", "ssh", "ssh-keygen") if _where(tool) is None]
    return f"{', '.join(missing)} not found; apt-get install pdsh openssh-server" if missing else None


class Host:
    """One of them; lives until it is closed, or this process ends."""

    def __init__(self, number: int) -> None:
        self.number, self.name, self.address = number, f"node-{number}", f"10.77.0.{number + 1}"
        shell = f"hostname {self.name}; ip link set lo up; echo up; read -r _"
        self._unshare = subprocess.Popen(
            ["unshare", *_NAMESPACES, "--fork", "--mount-proc", "sh", "-c", shell],
            env=_ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for whoever uses the host
        )
        assert self._unshare.stdin and self._unshare.stdout
        self._pipe, said = self._unshare.stdin, self._unshare.stdout
        with said:
            if said.readline() != "up\n":
                self.close()
                raise RuntimeError(f"{self.name} did not start")
        self.pid = psutil.Process(self._unshare.pid).children()[0].pid  # the shell's, from outside

    def start(self, command: Sequence[str | Path], said: Path, variables: dict[str, str]) -> subprocess.Popen:
        """A command on this host, in the repository; what it says goes into the file `said`."""
        with said.open("ab") as file:
            return subprocess.Popen(
                [*self._enter(*_NAMESPACES), "env", "-C", REPOSITORY, *command],
                env={**_ENVIRONMENT, **variables},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def do(self, *command: str | Path, namespaces: Sequence[str] = _NAMESPACES) -> str:
        """A command in (some of) the host's namespaces, as root; returns what it printed. RuntimeError where it fails."""
        done = subprocess.run(
            [*self._enter(*namespaces), *command], env=_ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{self.name}: {' '.join(map(str, command))}: {done.stdout}{done.stderr}")
        return done.stdout

    def close(self) -> None:
        """End all its processes, and with them the host."""
        self._pipe.close()
        try:
            self._unshare.wait(10)
        except subprocess.TimeoutExpired:  # a shell that does not end would be a stopped one
            for child in psutil.Process(self._unshare.pid).children():
                child.kill()
            self._unshare.wait()

    def _enter(self, *namespaces: str) -> list[str]:
        return ["nsenter", "--target", str(self.pid), *namespaces, "--"]


class Hosts:
    """`count` hosts, one or two, that have two ranks together; a context. With one there is nothing to reach, and no way to it.

    directory   for keys, logs and the hostfile
    by_ssh      there is an sshd on each, and the launcher uses it
    own         a path at which each host shall see a directory of its own; from outside that is `disk(number)`
    """

    def __init__(self, count: int, directory: Path, *, by_ssh: bool = False, own: Path | None = None) -> None:
        assert count in (1, 2) and not (by_ssh and count == 1)
        self.directory, self.by_ssh = directory, by_ssh
        self.hosts: list[Host] = []
        self._cleanup = ExitStack()
        try:
            for number in range(count):
                self.hosts.append(Host(number))
                self._cleanup.callback(self.hosts[-1].close)
            if count == 2:
                self._join(*self.hosts)
            if own:
                self._give_disks(own)
            if by_ssh:
                self._start_sshd()
        except BaseException:
            self._cleanup.close()
            raise

    def __enter__(self) -> "Hosts":
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    @property
    def way(self) -> str:
        """How the launcher gets to the hosts."""
        if len(self.hosts) == 1:
            return "one host: deepspeed --num_accelerators"
        return (
            "two hosts: deepspeed --hostfile, by pdsh and ssh"
            if self.by_ssh
            else "two hosts: deepspeed --no_ssh on each"
        )

    def disk(self, number: int) -> Path:
        return self.directory / f"disk-{number}"

    def deepspeed(self, *words: str | Path, timeout_seconds: float = 300.0) -> tuple[int, str]:
        """`deepspeed ... words` -> (exit code, what was said). TimeoutError, with what was said until then."""
        first, said, variables = self.hosts[0], self._empty_logs(), self._variables()
        launcher: list[str | Path] = [Path(sys.executable).parent / "deepspeed"]
        if len(self.hosts) == 1:
            started = [first.start([*launcher, "--num_accelerators", str(RANKS), *words], said[0], variables)]
        else:
            hostfile = self.directory / "hostfile"
            hostfile.write_text("".join(f"{host.address} slots={RANKS // len(self.hosts)}\n" for host in self.hosts))
            launcher += ["--hostfile", hostfile, "--master_addr", first.address]
            if self.by_ssh:
                file = self.directory / "deepspeed_env"  # what people have as ~/.deepspeed_env
                file.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
                started = [first.start([*launcher, *words], said[0], {"DS_ENV_FILE": str(file)})]
            else:
                started = [
                    host.start([*launcher, "--no_ssh", "--node_rank", str(host.number), *words], path, variables)
                    for host, path in zip(self.hosts, said, strict=True)
                ]
        return self._ended(started, said, timeout_seconds)

    def python(self, *words: str | Path, timeout_seconds: float = 300.0) -> tuple[int, str]:
        """`python ... words` as a rank on each of two hosts, with the variables that a launcher sets; returns as `deepspeed`.

        Where the launcher is not what is tested: it imports torch twice on each host before the rank does.
        """
        assert len(self.hosts) == RANKS
        said, same = self._empty_logs(), self._variables()
        same |= {"MASTER_ADDR": self.hosts[0].address, "MASTER_PORT": "29500"}
        same |= {"WORLD_SIZE": str(RANKS), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        started = [
            host.start([sys.executable, *words], path, {**same, "RANK": str(host.number)})
            for host, path in zip(self.hosts, said, strict=True)
        ]
        return self._ended(started, said, timeout_seconds)

    def _variables(self) -> dict[str, str]:
        """What ranks need and ssh does not bring along. gloo would take the address that a host's name stands for, if any."""
        variables = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": _INTERFACE if len(self.hosts) == 2 else "lo"}
        if cache := os.environ.get("PIC_KERNELS_CACHE"):
            variables["PIC_KERNELS_CACHE"] = cache
        return variables

    def _empty_logs(self) -> list[Path]:
        said = [self.directory / f"said-{host.number}.txt" for host in self.hosts]
        for path in said:
            path.write_text("")
        return said

    @staticmethod
    def _ended(started: Sequence[subprocess.Popen], said: Sequence[Path], timeout_seconds: float) -> tuple[int, str]:
        try:
            deadline = time.monotonic() + timeout_seconds
            codes = [launched.wait(max(0.0, deadline - time.monotonic())) for launched in started]
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"no end after {timeout_seconds:g} s:\n{_read(said)}") from None
        finally:
            for launched in started:  # what it started ends with its host
                launched.kill()
                launched.wait()
        return next((code for code in codes if code), 0), _read(said)

    def _join(self, first: Host, second: Host) -> None:
        """Lay the cable and give addresses."""
        peer = ("peer", "name", _INTERFACE, "netns", str(second.pid))  # a number that is known outside alone
        first.do("ip", "link", "add", _INTERFACE, "type", "veth", *peer, namespaces=["--net"])
        for host in (first, second):
            host.do("ip", "address", "add", f"{host.address}/24", "dev", _INTERFACE)
            host.do("ip", "link", "set", _INTERFACE, "up")

    def _give_disks(self, own: Path) -> None:
        own.mkdir(parents=True)
        for host in self.hosts:
            self.disk(host.number).mkdir(exist_ok=True)
            host.do("mount", "--bind", self.disk(host.number), own)

    def _start_sshd(self) -> None:
        """An sshd on each, and what people have in ~/.ssh/config: with it `ssh 10.77.0.2` works, and nobody is asked anything."""
        sshd = _where("sshd")
        assert sshd
        key, host_key, client = (self.directory / name for name in ("key", "host_key", "ssh_config"))
        for path in (key, host_key):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
        client.write_text(
            f"IdentityFile {key}\nIdentitiesOnly yes\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n"
        )
        for host in self.hosts:
            server = self.directory / f"sshd_config-{host.number}"
            server.write_text(
                f"HostKey {host_key}\nAuthorizedKeysFile {key}.pub\nPidFile {self.directory}/sshd-{host.number}.pid\n"
                "StrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n"
            )
            host.do("mount", "--bind", client, "/etc/ssh/ssh_config")
            host.do("mount", "-t", "tmpfs", "none", "/run")
            host.do("mkdir", "-m", "755", "/run/sshd")  # which Debian's sshd insists on
            host.do(sshd, "-f", server, "-E", self.directory / f"sshd-{host.number}.log")
        for host in self.hosts:
            self._expect_ssh(host)

    def _expect_ssh(self, host: Host, patience_seconds: float = 10.0) -> None:
        """Return when one gets there from the first host; RuntimeError, with what sshd says, where one does not."""
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                name = self.hosts[0].do("ssh", host.address, "hostname").strip()
                assert name == host.name, f"ssh {host.address} is {name} instead of {host.name}"
                return
            except RuntimeError as error:
                if time.monotonic() > deadline:
                    log = _read([self.directory / f"sshd-{host.number}.log"])
                    raise RuntimeError(f"{error}\nsshd of {host.name} says: {log}") from None
                time.sleep(0.1)


def _where(tool: str) -> str | None:
    return shutil.which(tool, path=_ENVIRONMENT["PATH"])


def _read(paths: Sequence[Path]) -> str:
    return "".join(path.read_text(errors="replace") for path in paths if path.exists())


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Train a tiny run on two hosts that are namespaces of this machine.")
    parser.add_argument("--without-ssh", action="store_true", help="start the launcher on each host")
    parser.add_argument("--own-disks", action="store_true", help="each host keeps its checkpoints to itself")
    options = parser.parse_args(arguments)
    if reason := why_not():
        print(reason, file=sys.stderr)
        return 1
    no_ssh = "as asked" if options.without_ssh else why_not_by_ssh()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="two-hosts-") as name:
        directory = Path(name)
        config, runs = directory / "config.json", directory / "runs"
        config.write_text(json.dumps(TINY))
        words = [f"output={runs / 'run'}", "steps=25", "checkpoint.every_steps=10"]
        own = runs if options.own_disks else None
        with Hosts(2, directory, by_ssh=no_ssh is None, own=own) as hosts:
            print(hosts.way + (f" ({no_ssh})" if no_ssh else ""), flush=True)
            start = time.monotonic()
            code, said = hosts.deepspeed(
                "launch.py", "--config", config, *words, *(["ranks.own_disks=true"] if own else [])
            )
            print(f"{said}\nexit code {code} after {time.monotonic() - start:.0f} s")
        for root in [hosts.disk(number) for number in range(2)] if own else [runs]:
            print(f"{root.name}:", *sorted(path.name for path in (root / "run").glob("*")))
            checkpoints = root / "run" / "checkpoints"
            print(*(f"  {path.relative_to(root)}" for path in sorted(checkpoints.glob("*/*"))), sep="\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
