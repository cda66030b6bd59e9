"""Typed access to values of a document; faults are collected with their positions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from qflow.types import ValueTextError

from services.registry.domain.document import Fault, Item, Number, joined, plain
from services.registry.domain.exact_values import text_of

# A coarse bound; the contract's limits on times and sizes are checked later.
_INTEGER_MAX: Final = 2**40
_INTEGER_DIGITS_MAX: Final = 13


@dataclass(slots=True)
class Values:
    """The faults found so far, and the positions of the definition's parts."""

    faults: list[Fault] = field(default_factory=list)
    places: dict[str, Fault] = field(default_factory=dict)

    def add(self, item: Item, path: str, code: str, message: str) -> None:
        """Add a fault at a value's position."""
        self.faults.append(Fault(item.line, item.column, path, code, message))

    def mark(self, place: str, item: Item, path: str) -> None:
        """Remember the position of a part of the definition."""
        self.places[place] = Fault(item.line, item.column, path, "", "")

    def members(
        self, item: Item, path: str, required: Iterable[str] = (), optional: Iterable[str] = ()
    ) -> dict[str, Item]:
        """Return the known members of a mapping; reports unknown and missing keys."""
        found = self.mapping(item, path)
        known = {*required, *optional}
        for key, member in found.items():
            if key not in known:
                message = f"is not known here; known are {', '.join(sorted(known))}"
                self.add(member, joined(path, key), "KEY_UNKNOWN", message)
        if isinstance(item.value, dict):
            for key in required:
                if key not in found:
                    self.add(item, path, "KEY_MISSING", f"{key} is missing")
        return {key: member for key, member in found.items() if key in known}

    def mapping(self, item: Item, path: str) -> dict[str, Item]:
        """Return a mapping, empty if the value is none."""
        if isinstance(item.value, dict):
            return item.value
        self.add(item, path, "VALUE_INVALID", "must be a mapping of keys to values")
        return {}

    def sequence(self, item: Item | None, path: str) -> list[Item]:
        """Return a list; empty if absent."""
        if item is None:
            return []
        if isinstance(item.value, list):
            return item.value
        self.add(item, path, "VALUE_INVALID", "must be a list")
        return []

    def text(self, item: Item | None, path: str) -> str:
        """Return a text; empty if absent."""
        if item is None:
            return ""
        if isinstance(item.value, str) and not isinstance(item.value, Number):
            return item.value
        self.add(item, path, "VALUE_INVALID", "must be a text; put it in quotes")
        return ""

    def texts(self, item: Item | None, path: str) -> tuple[str, ...]:
        """Return a list of texts; empty if absent."""
        items = self.sequence(item, path)
        return tuple(self.text(each, f"{path}[{at}]") for at, each in enumerate(items))

    def span(self, item: Item | None, path: str) -> int | None:
        """Return a duration in whole milliseconds; None if absent."""
        return None if item is None else self.integer(item, path, 1)

    def flag(self, item: Item | None, path: str) -> bool:
        """Return a boolean; false if absent."""
        if item is None:
            return False
        if not isinstance(item.value, bool):
            self.add(item, path, "VALUE_INVALID", "must be true or false")
        return item.value is True

    def integer(self, item: Item | None, path: str, default: int) -> int:
        """Return a whole number, or the default if absent or invalid."""
        if item is None:
            return default
        digits = item.value
        if isinstance(digits, Number) and len(digits) <= _INTEGER_DIGITS_MAX:
            try:
                value = int(digits)
            except ValueError:
                pass
            else:
                if 0 <= value <= _INTEGER_MAX:
                    return value
        self.add(item, path, "VALUE_INVALID", f"must be a whole number from 0 to {_INTEGER_MAX}")
        return default

    def real(self, item: Item | None, path: str, default: float) -> float:
        """Return a number, or the default if absent or invalid."""
        if item is None:
            return default
        if isinstance(item.value, Number):
            return float(item.value)
        self.add(item, path, "VALUE_INVALID", "must be a number")
        return default

    def value_text(self, item: Item, path: str) -> str:
        """Return any value as its JSON text."""
        try:
            return text_of(plain(item))
        except ValueTextError as error:
            self.add(item, path, "VALUE_INVALID", str(error))
            return "null"
