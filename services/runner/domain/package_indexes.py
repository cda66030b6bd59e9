"""Private package indexes: the configuration of the installer, and credentials kept out of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

INDEXES_MAX: Final = 10
# "always" sends credentials at once, "never" sends none to an index without them.
_INDEX: Final = '[[index]]\nname = {name}\nurl = {url}\nauthenticate = "{asks}"\n'


@dataclass(frozen=True, slots=True)
class OpenIndex:
    """An index with its password in clear, for the duration of one call of the installer."""

    name: str
    url: str
    username: str = ""
    password: str = field(default="", repr=False)


def as_config(indexes: Sequence[OpenIndex]) -> str:
    """Return the installer's configuration of these indexes, without credentials."""
    return "".join(
        _INDEX.format(
            name=json.dumps(each.name),
            url=json.dumps(each.url),
            asks="always" if each.password else "never",
        )
        for each in indexes
    )


def credentials(indexes: Sequence[OpenIndex]) -> Mapping[str, str]:
    """Return the environment variables with the indexes' credentials."""
    told = {}
    for each in indexes:
        if each.password:
            prefix = f"UV_INDEX_{each.name.upper().replace('-', '_')}"
            told[f"{prefix}_USERNAME"] = each.username
            told[f"{prefix}_PASSWORD"] = each.password
    return told


def host_of(url: str) -> str:
    """Return `host:port` of a validated URL."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or (80 if parts.scheme == 'http' else 443)}"
