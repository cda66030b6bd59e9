"""Environments by content: equal needs give one folder, whoever asks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

PACKAGES_MAX: Final = 100
_PINNED: Final = re.compile(
    r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==([^\s;\\]+)", re.MULTILINE
)
_ADDRESS: Final = re.compile(r"\b[a-z+]+://\S+|/(?:[\w.@+-]+/)+[\w.@+-]*")


@dataclass(frozen=True, slots=True)
class Package:
    """One pinned distribution."""

    name: str
    version: str


def lock_digest(lock: str) -> str:
    """Digest a lock: its lines are sorted by the resolver, so equal locks have equal texts."""
    return hashlib.sha256(lock.encode()).hexdigest()


def environment_key(*, python_version: str, platform: str, digest: str) -> str:
    """Name the environment: what may differ between two machines is in the name."""
    text = f"{python_version}\n{platform}\n{digest}"
    return f"py{python_version}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def packages_in(lock: str) -> Sequence[Package]:
    """List what a lock pins."""
    return [Package(name, version) for name, version in _PINNED.findall(lock)]


def without_addresses(text: str, *, limit: int = 2000) -> str:
    """Trim a tool's words for a user: no index addresses, no paths of this machine."""
    return _ADDRESS.sub("<hidden>", text).strip()[:limit]
