"""Values read from a document: each is told its place, and what is wrong with it is noted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from qflow.types import ValueTextError

from services.registry.domain.document import Fault, Item, Number, joined, plain
from services.registry.domain.exact_values import text_of

# Spans and sizes are held to the contract's limits later; this much they must be to get there.
_INTEGER_MAX: Final = 2**40
_INTEGER_DIGITS_MAX: Final = 13


@dataclass(slots=True)
class Values:
    """What was found so far, and where each part of it stands."""

    faults: list[Fault] = field(default_factory=list)
    places: dict[str, Fault] = field(default_factory=dict)

    def add(self, item: Item, path: str, code: str, message: str) -> None:
        """Note a fault where a value stands."""
        self.faults.append(Fault(item.line, item.column, path, code, message))

    def mark(self, place: str, item: Item, path: str) -> None:
        """Remember where a part of the definition stands."""
        self.places[place] = Fault(item.line, item.column, path, "", "")

    def members(
        self, item: Item, path: str, required: Iterable[str] = (), optional: Iterable[str] = ()
    ) -> dict[str, Item]:
        """Take a mapping whose keys are known."""
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
        """Take a mapping."""
        if isinstance(item.value, dict):
            return item.value
        self.add(item, path, "VALUE_INVALID", "must be a mapping of keys to values")
        return {}

    def sequence(self, item: Item | None, path: str) -> list[Item]:
        """Take a list; none is an empty one."""
        if item is None:
            return []
        if isinstance(item.value, list):
            return item.value
        self.add(item, path, "VALUE_INVALID", "must be a list")
        return []

    def text(self, item: Item | None, path: str) -> str:
        """Take a text; none is an empty one."""
        if item is None:
            return ""
        if isinstance(item.value, str) and not isinstance(item.value, Number):
            return item.value
        self.add(item, path, "VALUE_INVALID", "must be a text; put it in quotes")
        return ""

    def texts(self, item: Item | None, path: str) -> tuple[str, ...]:
        """Take a list of texts; none is an empty one."""
        items = self.sequence(item, path)
        return tuple(self.text(each, f"{path}[{at}]") for at, each in enumerate(items))

    def span(self, item: Item | None, path: str) -> int | None:
        """Take a span in whole milliseconds; none is none."""
        return None if item is None else self.integer(item, path, 1)

    def flag(self, item: Item | None, path: str) -> bool:
        """Take true or false; none is false."""
        if item is None:
            return False
        if not isinstance(item.value, bool):
            self.add(item, path, "VALUE_INVALID", "must be true or false")
        return item.value is True

    def integer(self, item: Item | None, path: str, default: int) -> int:
        """Take a whole number."""
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
        """Take a number."""
        if item is None:
            return default
        if isinstance(item.value, Number):
            return float(item.value)
        self.add(item, path, "VALUE_INVALID", "must be a number")
        return default

    def value_text(self, item: Item, path: str) -> str:
        """Take any value, as its JSON text."""
        try:
            return text_of(plain(item))
        except ValueTextError as error:
            self.add(item, path, "VALUE_INVALID", str(error))
            return "null"
