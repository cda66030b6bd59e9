"""Private package indexes: what an installer is told of them, and what it must never show."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

INDEXES_MAX: Final = 10
# An index that wants to know who asks is told at once, and one that does not is told nothing.
_INDEX: Final = '[[index]]\nname = {name}\nurl = {url}\nauthenticate = "{asks}"\n'


@dataclass(frozen=True, slots=True)
class OpenIndex:
    """An index with its credential in clear, for the length of one call of the installer."""

    name: str
    url: str
    username: str = ""
    password: str = field(default="", repr=False)


def as_config(indexes: Sequence[OpenIndex]) -> str:
    """Write them in the installer's own words, without what they ask for."""
    return "".join(
        _INDEX.format(
            name=json.dumps(each.name),
            url=json.dumps(each.url),
            asks="always" if each.password else "never",
        )
        for each in indexes
    )


def credentials(indexes: Sequence[OpenIndex]) -> Mapping[str, str]:
    """Give the variables by which the installer learns what indexes ask for."""
    told = {}
    for each in indexes:
        if each.password:
            prefix = f"UV_INDEX_{each.name.upper().replace('-', '_')}"
            told[f"{prefix}_USERNAME"] = each.username
            told[f"{prefix}_PASSWORD"] = each.password
    return told


def host_of(url: str) -> str:
    """Give `host:port` of an address that was checked."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or (80 if parts.scheme == 'http' else 443)}"
