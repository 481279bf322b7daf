"""Starts a command that cannot outlive the process that asked for it: python tied.py PARENT CGROUP COMMAND...

PARENT    its number. When it ends, however it ends, the kernel kills the command (prctl PR_SET_PDEATHSIG, which an exec leaves as it is).
CGROUP    directory of a control group that the command joins; empty: none

The command becomes this process. Its own children are not tied; engine/scaling/tree.py finds them. Should the machine's memory run out,
the kernel is told to take this process first. A script of its own, with the standard library alone: nothing runs between fork and exec
of a process that has threads.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Does not return where the command can be started."""
    parent, cgroup, *command = arguments
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        return 1  # it ended before it could be asked to kill
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")
    if cgroup:
        with open(os.path.join(cgroup, "cgroup.procs"), "w", encoding="ascii") as file:
            file.write("0")
    os.execv(command[0], command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
