"""Which packages the nodes of a tenant may use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from services.runner.domain.environments import Package, RequirementError, plain_requirement

_NAMED_MAX: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageRules:
    """If `allowed` is not empty, only those packages are allowed; never those in `denied`."""

    allowed: Sequence[str] = ()
    denied: Sequence[str] = ()
    release_age_days_min: int = 0


NO_RULES: Final = PackageRules()


@dataclass(frozen=True, slots=True)
class RuleBook:
    """Several sets of rules that all apply."""

    rules: Sequence[PackageRules]

    def refused(self, packages: Sequence[Package]) -> list[Package]:
        """Return the packages that any of the rules refuses."""
        found = {each: None for rules in self.rules for each in refused(packages, rules)}
        return list(found)

    def released_before(self, now: datetime) -> datetime | None:
        """Return the time before which a release must have been published; None if any will do."""
        days = max((each.release_age_days_min for each in self.rules), default=0)
        return (now - timedelta(days=days)).replace(microsecond=0) if days else None


def plain_rule(text: str) -> str:
    """Normalise a rule; RequirementError if it is more than a name with versions."""
    plain = plain_requirement(text)
    if "[" in plain:
        raise RequirementError("a rule is about a package with all its extras")
    return plain


def refused(packages: Iterable[Package], rules: PackageRules) -> list[Package]:
    """Return the packages that the rules refuse."""
    allowed, denied = _by_name(rules.allowed), _by_name(rules.denied)
    return [
        each
        for each in packages
        if _matches(each, denied) or (allowed and not _matches(each, allowed))
    ]


def refusal(packages: Sequence[Package]) -> str:
    """Describe what was refused."""
    names = ", ".join(f"{each.name} {each.version}" for each in packages[:_NAMED_MAX])
    more = f" and {len(packages) - _NAMED_MAX} more" if len(packages) > _NAMED_MAX else ""
    return f"the package rules do not allow {names}{more}"


def _by_name(rules: Sequence[str]) -> dict[str, list[Requirement]]:
    found: dict[str, list[Requirement]] = {}
    for text in rules:
        rule = Requirement(text)
        found.setdefault(canonicalize_name(rule.name), []).append(rule)
    return found


def _matches(package: Package, rules: dict[str, list[Requirement]]) -> bool:
    try:
        version = Version(package.version)
    except InvalidVersion:
        return False
    return any(
        each.specifier.contains(version, prereleases=True)
        for each in rules.get(canonicalize_name(package.name), ())
    )
