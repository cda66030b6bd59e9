"""Exec a program that is killed when its parent dies; run with `python -I -S`.

    launch.py PARENT_PID COMMAND...

A separate program, standard library only: an actor has threads, so it must not run Python between
fork and exec.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
EXIT_CANNOT_START = 126


def main() -> None:
    """Bind this process's life to its parent's, then exec the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(EXIT_CANNOT_START)
    os.execv(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main()
