"""How much of a process calls share."""

from __future__ import annotations

import enum
from typing import Final


class Reuse(enum.StrEnum):
    """What a call may find of the calls before it, from most to nothing."""

    WARM = "warm"  # the interpreter with the node's code loaded
    FORK = "fork"  # a fork of one that has imported packages; the code is loaded anew
    FRESH = "fresh"  # an interpreter begun anew, in a sandbox that stays
    CONTAINER = "container"  # a sandbox of its own

    __hash__ = str.__hash__  # in C: it stands in keys that every call looks up

    @property
    def apart(self) -> bool:
        """Whether a call runs in a child of the agent's, in a sandbox that node versions share."""
        return self is Reuse.FORK or self is Reuse.FRESH


_STRICTNESS: Final = {each: place for place, each in enumerate(Reuse)}
# An agent keeps the versions it was told of; with one that knows more a new one is begun.
VERSIONS_MAX: Final = 64


def calls_at_once(asked: int, reuse: Reuse, *, is_async: bool, carries_files: bool) -> int:
    """Give how many calls one interpreter serves at once: of an `async def` whose calls may meet.

    The place where files are handed over is the sandbox's, not a call's.
    """
    may = reuse is Reuse.WARM and is_async and not carries_files
    return max(1, asked) if may else 1


def reuse_of(asked: Reuse, *, own_code: bool, with_secrets: bool = False) -> Reuse:
    """Give what holds for a call: another's code, or with secrets, never meets a process twice."""
    least = Reuse.WARM if own_code and not with_secrets else Reuse.FORK
    return max(asked, least, key=_STRICTNESS.__getitem__)
