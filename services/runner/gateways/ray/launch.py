"""Become a program that is killed when its parent ends; run with `python -I -S`.

    launch.py PARENT_PID COMMAND...

A file of its own, standard library only: between fork and exec an actor, which has threads, must
run no Python.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
EXIT_CANNOT_START = 126


def main() -> None:
    """Tie the life to the parent's, become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(EXIT_CANNOT_START)
    os.execv(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main()
