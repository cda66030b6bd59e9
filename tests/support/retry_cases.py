"""Which failures a retry policy takes: the same here and on a server."""

from __future__ import annotations

from typing import Final, NamedTuple


class Case(NamedTuple):
    """What a policy names, what is raised, and whether it is tried again."""

    on: tuple[str, ...]
    never_on: tuple[str, ...]
    raised: type[BaseException]
    again: bool


class DerivedError(ValueError):
    """A class of user code."""


# The word that a failed attempt has for it, where it is not `user_error`.
KINDS: Final[dict[type[BaseException], str]] = {SystemExit: "exited", MemoryError: "oom"}
CASES: Final = (
    Case((), (), ValueError, True),
    Case(("ValueError",), (), ValueError, True),
    Case(("KeyError", "ValueError"), (), ValueError, True),
    Case(("KeyError",), (), ValueError, False),
    Case((), ("ValueError",), ValueError, False),
    Case((), ("KeyError",), ValueError, True),
    Case(("ValueError",), ("ValueError",), ValueError, False),
    Case(("user_error",), (), ValueError, True),
    Case((), ("user_error",), ValueError, False),
    Case(("user_error",), ("ValueError",), ValueError, False),
    Case(("ValueError",), (), DerivedError, False),
    Case(("DerivedError",), (), DerivedError, True),
    Case((), ("Exception",), ValueError, True),
    Case(("exited",), (), SystemExit, True),
    Case((), ("SystemExit",), SystemExit, False),
    Case(("user_error",), (), SystemExit, False),
    Case(("oom",), (), MemoryError, True),
    Case((), ("MemoryError",), MemoryError, False),
)
