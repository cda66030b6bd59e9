"""How much of a process is shared by calls."""

from __future__ import annotations

import enum
from typing import Final


class Reuse(enum.StrEnum):
    """What a call may find of earlier calls, from most to nothing."""

    WARM = "warm"  # the interpreter with the node's code loaded
    FORK = "fork"  # a fork of one that has imported packages; the code is loaded again
    FRESH = "fresh"  # a new interpreter, in a sandbox that is reused
    CONTAINER = "container"  # a sandbox of its own

    __hash__ = str.__hash__  # implemented in C: it is part of keys that every call looks up

    @property
    def apart(self) -> bool:
        """Whether a call runs in a child of the agent, in a sandbox shared by node versions."""
        return self is Reuse.FORK or self is Reuse.FRESH


_STRICTNESS: Final = {each: place for place, each in enumerate(Reuse)}
# Agents keep the versions registered with them; with this many an agent is replaced.
VERSIONS_MAX: Final = 64


def calls_at_once(asked: int, reuse: Reuse, *, is_async: bool, carries_files: bool) -> int:
    """Return how many concurrent calls one interpreter serves: more than one for `async def` only.

    Calls with files are never concurrent: the exchange folder belongs to the sandbox, not to a
    call.
    """
    may = reuse is Reuse.WARM and is_async and not carries_files
    return max(1, asked) if may else 1


def reuse_of(asked: Reuse, *, own_code: bool, with_secrets: bool = False) -> Reuse:
    """Return a call's mode: with secrets or another tenant's code, at least a fork per call."""
    least = Reuse.WARM if own_code and not with_secrets else Reuse.FORK
    return max(asked, least, key=_STRICTNESS.__getitem__)
