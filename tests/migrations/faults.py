"""The register of the seed's faults: an id, what is wrong, and a check that sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.migrations.subject import Subject


@dataclass(frozen=True)
class Fault:
    """One fault; `seen(subject)` is true where the schema has it."""

    case: str
    what: str
    seen: Callable[[Subject], bool]
    literal: bool = False  # whether it needs the seed without the missing function


ALL: list[Fault] = []


def fault(
    case: str, what: str, *, literal: bool = False
) -> Callable[[Callable[[Subject], bool]], Callable[[Subject], bool]]:
    """Register a check."""

    def register(check: Callable[[Subject], bool]) -> Callable[[Subject], bool]:
        ALL.append(Fault(case, what, check, literal))
        return check

    return register
