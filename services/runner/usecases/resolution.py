"""Resolution: requirements become a lock of wheels with hashes, once per node version."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from uuid import UUID

from services.kit.errors import (
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    QflowError,
    Unavailable,
)
from services.kit.pythons import version_key
from services.runner.domain.environments import (
    PACKAGES_MAX,
    RequirementError,
    lock_digest,
    packages_in,
    plain_requirement,
)
from services.runner.domain.package_rules import refusal
from services.runner.gateways.environment_folders import LOCK, RESOLVE, in_turn
from services.runner.gateways.sandbox.port import Interpreter
from services.runner.gateways.uv import DISK_FULL, INDEX_REFUSES, Uv, UvError, disk_full
from services.runner.usecases.environment_room import Room
from services.runner.usecases.full_disk import disk_refuses
from services.runner.usecases.package_indexes import IndexRefused
from services.runner.usecases.tenant_packages import TenantPackages

_RESOLVES_AT_ONCE: Final = 2
_AGAIN_S: Final = 5.0
_ONLY_WHEELS: Final = (
    "only wheels are taken: build one where that is safe and upload it (WheelService.UploadWheel), "
    "or choose a version that has one"
)


@dataclass(frozen=True, slots=True)
class Lock:
    """The pinned packages, as text with its digest."""

    text: str
    digest: str


class Resolver:
    """Pins requirements with uv; a tenant's own wheels and indexes take precedence."""

    def __init__(
        self,
        *,
        root: Path,
        uv: Uv,
        interpreters: Mapping[str, Interpreter],
        room: Room,
        packages: TenantPackages,
    ) -> None:
        self._root = root
        self._uv = uv
        self._interpreters = interpreters
        self._room = room
        self._packages = packages
        self._resolving = asyncio.Semaphore(_RESOLVES_AT_ONCE)

    async def resolve(
        self, requirements: Sequence[str], python_version: str, tenant_id: UUID
    ) -> Lock:
        """Pin requirements to wheels with hashes, without running any of their code.

        InvalidArgument for an unsupported requirement, when no set of wheels meets them all, or
        when the tenant's rules refuse one; FailedPrecondition without such a Python or when a
        tenant's index refuses access; Unavailable when the index does not respond;
        ResourceExhausted on a full disk.
        """
        plain = plain_requirements(requirements)
        interpreter = python_of(self._interpreters, python_version)
        rules = await self._packages.rules_of(tenant_id)
        own = await self._packages.own_wheels(tenant_id)
        try:
            indexes = await self._packages.indexes(tenant_id)
        except IndexRefused as problem:
            raise FailedPrecondition("INDEX_UNUSABLE", str(problem)) from None
        # Tenants without their own wheels and indexes all see the same packages, so they share a
        # cache.
        shared = own is None and not indexes
        folder = self._root / RESOLVE if shared else self._root / str(tenant_id) / RESOLVE
        try:
            if not await self._room.enough():
                raise disk_full()
            async with self._resolving, in_turn(folder / LOCK, shared=True):
                text = await self._uv.resolve(
                    plain,
                    folder=folder,
                    python_version=python_version,
                    interpreter=interpreter,
                    own=own,
                    indexes=indexes,
                    released_before=rules.released_before(datetime.now(UTC)),
                )
        except OSError as problem:
            raise disk_refuses(f"{problem.strerror}", retry_after_s=_AGAIN_S) from None
        except UvError as problem:
            raise _refused(problem) from None
        packages = packages_in(text)
        forbidden = rules.refused(packages)
        if forbidden:
            raise _unsatisfiable("PACKAGE_REFUSED", refusal(forbidden))
        if len(packages) > PACKAGES_MAX:
            raise _unsatisfiable(
                "REQUIREMENTS_UNSATISFIABLE",
                f"the requirements pull in more than {PACKAGES_MAX} packages",
            )
        return Lock(text, lock_digest(text))


def python_of(interpreters: Mapping[str, Interpreter], python_version: str) -> Interpreter:
    """Return this runner's Python of a version; raises FailedPrecondition."""
    interpreter = interpreters.get(python_version)
    if interpreter is None:
        raise FailedPrecondition(
            "PYTHON_MISSING",
            f"this runner has no Python {python_version}; it has "
            + ", ".join(sorted(interpreters, key=version_key)),
            python_version=python_version,
        )
    return interpreter


def _refused(problem: UvError) -> QflowError:
    """Translate an error of uv: transient, or due to the requirements."""
    if problem.reason == DISK_FULL:
        return disk_refuses("no space is left", retry_after_s=_AGAIN_S)
    if problem.retryable:
        return Unavailable(problem.reason, str(problem), retry_after_s=_AGAIN_S)
    if problem.reason == INDEX_REFUSES:
        return FailedPrecondition(problem.reason, str(problem))
    if "no usable wheels" in str(problem):
        return _unsatisfiable("NO_BINARY", f"{problem}\n{_ONLY_WHEELS}")
    return _unsatisfiable("REQUIREMENTS_UNSATISFIABLE", str(problem))


def _unsatisfiable(reason: str, message: str) -> InvalidArgument:
    return InvalidArgument(
        reason, message, fields=[FieldViolation("requirements", message, reason)]
    )


def plain_requirements(requirements: Sequence[str]) -> list[str]:
    """Normalise requirements; InvalidArgument lists each that is not supported."""
    plain = []
    faults = []
    for position, text in enumerate(requirements):
        try:
            plain.append(plain_requirement(text))
        except RequirementError as problem:
            faults.append(FieldViolation(f"requirements[{position}]", str(problem)))
    if faults:
        raise InvalidArgument("INVALID_REQUIREMENT", faults[0].description, fields=faults)
    return plain
