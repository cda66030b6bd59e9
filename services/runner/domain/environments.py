"""Environments by content: equal needs of one tenant share one folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

PACKAGES_MAX: Final = 100
_PINNED: Final = re.compile(
    r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==([^\s;\\]+)((?:.*\\\n)*.*)", re.MULTILINE
)
_SHA256: Final = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_REQUIREMENT_CHARS_MAX: Final = 255
_SHOWN_CHARS_MAX: Final = 2000
_PRINTABLE: Final = re.compile(r"[\x20-\x7e]+")
_ADDRESS: Final = re.compile(r"\b[a-z+]+://\S+|/(?:[\w.@+-]+/)+[\w.@+-]*")


@dataclass(frozen=True, slots=True)
class Package:
    """One pinned distribution; its wheel must have one of these hashes."""

    name: str
    version: str
    sha256: tuple[str, ...] = ()


def lock_digest(lock: str) -> str:
    """Return the digest of a lock; its lines are sorted, so equal locks have equal texts."""
    return hashlib.sha256(lock.encode()).hexdigest()


def environment_key(*, tenant_id: UUID, python_version: str, platform: str, digest: str) -> str:
    """Return an environment's key, derived from its tenant and all that determines its content."""
    text = f"{tenant_id}\n{python_version}\n{platform}\n{digest}"
    return f"py{python_version}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def packages_in(lock: str) -> Sequence[Package]:
    """Return the packages that a lock pins."""
    return [
        Package(name, version, tuple(_SHA256.findall(rest)))
        for name, version, rest in _PINNED.findall(lock)
    ]


class RequirementError(ValueError):
    """A requirement is refused; the message says why."""


def plain_requirement(text: str) -> str:
    """Normalise a requirement to name, extras and versions; RequirementError for anything else.

    Other forms that installers accept could fetch or run anything. The result is rebuilt, never the
    text as sent: a name cannot be a path, and each version was parsed, which `===` would prevent.
    """
    if not _PRINTABLE.fullmatch(text) or len(text) > _REQUIREMENT_CHARS_MAX:
        raise RequirementError(
            f"a requirement is one line of 1 to {_REQUIREMENT_CHARS_MAX} plain ASCII characters"
        )
    try:
        parsed = Requirement(text)
    except InvalidRequirement as problem:
        raise RequirementError(str(problem).splitlines()[0][:200]) from None
    if parsed.url or parsed.marker:
        raise RequirementError("only a name, extras and versions are allowed")
    if any(clause.operator == "===" for clause in parsed.specifier):
        raise RequirementError("the operator === is refused; use ==")
    extras = ",".join(sorted(canonicalize_name(extra) for extra in parsed.extras))
    name = canonicalize_name(parsed.name)
    return f"{name}[{extras}]{parsed.specifier}" if extras else f"{name}{parsed.specifier}"


def without_addresses(text: str) -> str:
    """Redact a tool's output for users: no index URLs, no paths of this machine."""
    return _ADDRESS.sub("<hidden>", text).strip()[:_SHOWN_CHARS_MAX]
