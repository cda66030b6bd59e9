"""Exec a program so that it dies with its parent; run with `python -I -S` before every child.

A separate file that needs only the standard library: this work between fork and exec must not
happen in the supervisor, which may have threads and must never change its own identity.

    spawn.py PARENT_PID SIGNAL IDENTITY COMMAND...

IDENTITY is `same`, `namespace:UID` (a user namespace in which this user is called UID, since
PostgreSQL refuses to run as root) or `UID:GID` (drop to that user).
"""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1
_CLONE_NEWUSER = 0x10000000
EXIT_CANNOT_START = 126


def _refuse(why: str) -> None:
    sys.stderr.write(f"cannot start: {why}\n")
    sys.stderr.flush()
    os._exit(EXIT_CANNOT_START)


def _enter_namespace(libc: ctypes.CDLL, named: int) -> None:
    uid, gid = os.geteuid(), os.getegid()
    if libc.unshare(_CLONE_NEWUSER) != 0:
        _refuse(f"no user namespace ({os.strerror(ctypes.get_errno())})")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{named} {uid} 1"),
        ("gid_map", f"{named} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:  # noqa: PTH123
            file.write(text)


def _drop_to(identity: str) -> None:
    uid, gid = (int(part) for part in identity.split(":"))
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def main() -> None:
    """Take the identity, tie this process's life to the parent's, and exec the command."""
    parent, death_signal, identity = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    command = sys.argv[4:]
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        if identity.startswith("namespace:"):
            _enter_namespace(libc, int(identity.partition(":")[2]))
        elif identity != "same":
            _drop_to(identity)
    except OSError as error:
        _refuse(f"identity {identity}: {error}")
    # After the identity, since a change of credentials clears it.
    libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(EXIT_CANNOT_START)
    try:
        os.execv(command[0], command)  # noqa: S606
    except OSError as error:
        _refuse(f"{command[0]}: {error}")


if __name__ == "__main__":
    main()
