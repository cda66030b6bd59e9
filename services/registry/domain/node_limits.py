"""The resources that one attempt of a node may use, besides time and memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Self

from services.registry.domain import setting_table as table
from services.registry.domain.setting_table import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLimits:
    """The limits of a sandbox, with defaults; 0 millicores means no limit."""

    cpu_millicores: int = 0
    processes: int = int(table.PROCESSES.default or 0)
    open_files: int = int(table.OPEN_FILES.default or 0)
    temporary_bytes: int = int(table.TEMPORARY_BYTES.default or 0)
    output_bytes: int = int(table.OUTPUT_BYTES.default or 0)

    def settings(self) -> Iterator[tuple[Setting, float | None]]:
        """Yield each setting with its value."""
        for setting in table.NODE_LIMITS:
            value = getattr(self, setting.name.removeprefix("limits."))
            yield setting, (value or None if setting.default is None else value)

    def as_json(self) -> dict[str, int]:
        """Return the values that differ from the defaults, as stored and as shown in documents."""
        if self is DEFAULT:
            return {}
        return {
            name: value
            for name in NAMES
            if (value := getattr(self, name)) != getattr(DEFAULT, name)
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Parse the result of `as_json`; 0 means the default."""
        return cls(**{name: int(value) for name, value in stored.items() if value})


NAMES: Final = tuple(each.name for each in fields(NodeLimits))
# Shared by all nodes without limits of their own, so that `as_json` can compare by identity.
DEFAULT: Final = NodeLimits()
