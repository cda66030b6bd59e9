"""Environments: resolved once per node version, built once per tenant and lock, immutable."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import platform
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol
from uuid import UUID

import structlog

from services.kit.figures import Distribution
from services.kit.pg import Pool
from services.runner.domain.environments import (
    Package,
    environment_key,
    packages_in,
)
from services.runner.domain.package_rules import refusal
from services.runner.gateways.bom import bill_of_materials
from services.runner.gateways.disk import folder_bytes, remove_folder
from services.runner.gateways.environment_folders import BUILD, LOCK, in_turn, pin, touch
from services.runner.gateways.sandbox.bytecode import compiler
from services.runner.gateways.sandbox.port import Interpreter, SandboxHost
from services.runner.gateways.uv import Uv, UvError, disk_full
from services.runner.storage import environments
from services.runner.storage.environments import BuildRow
from services.runner.usecases.environment_quota import EnvironmentQuotas
from services.runner.usecases.environment_room import Room
from services.runner.usecases.package_indexes import IndexRefused
from services.runner.usecases.patience import passing, patiently
from services.runner.usecases.resolution import Lock, Resolver, python_of
from services.runner.usecases.tenant_packages import TenantPackages

log = structlog.get_logger()

# Eviction may remove an environment between its build and its use: rarely, and never this often.
_TRIES: Final = 3
# How long an unused environment is held, in case a sandbox is just being started with it.
_LET_GO_AFTER_S: Final = 60.0
# Not released to make room this soon after use: a call may be about to start a sandbox with it.
_JUST_ASKED_FOR_S: Final = 2.0
_BUILD_BOUNDS_S: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

# Called as packages are installed: (packages, status, milliseconds since the start).
Progress = Callable[[Sequence[Package], str, int | None], None]


class EnvironmentFailed(Exception):  # noqa: N818 - `EnvironmentError` is a built-in
    """An environment that is not available; `retryable` if it may be later."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


class Occupants(Protocol):
    """Users of environments: the sandboxes of this runner."""

    def environment_keys(self) -> frozenset[str]:
        """Return the keys of environments that sandboxes use or calls wait for."""

    def vacate(self, environment_key: str) -> None:
        """End the idle sandboxes of an environment."""


@dataclass(slots=True)
class _Held:
    """An environment in use, and the descriptor whose lock protects it from eviction."""

    folder: Path
    descriptor: int
    used_at: float = field(default_factory=time.time)
    told_at: float = field(default_factory=time.time)


class Environments:
    """Builds environments below one folder, and tracks which are in use.

    Each tenant has its own folder with its environments and, in `.build`, its cache: packages of
    one tenant are never linked into another's. Builds of one tenant are serialised.
    """

    def __init__(
        self,
        *,
        root: Path,
        uv: Uv,
        host: SandboxHost,
        interpreters: Mapping[str, Interpreter],
        pool: Pool,
        room: Room,
        packages: TenantPackages,
        incarnation: Callable[[], UUID],
        quotas: EnvironmentQuotas | None = None,
    ) -> None:
        self._root = root
        self._uv = uv
        self._host = host
        self._interpreters = interpreters
        self._pool = pool
        self._room = room
        self._packages = packages
        self._incarnation = incarnation
        self._quotas = quotas or EnvironmentQuotas(root, pool)
        self.occupants: Occupants | None = None  # set once the pool exists
        self._held: dict[str, _Held] = {}
        self._building: dict[str, asyncio.Task[Path]] = {}
        self._resolver = Resolver(
            root=root, uv=uv, interpreters=interpreters, room=room, packages=packages
        )
        self._telling: set[asyncio.Task[None]] = set()
        self.build_s = Distribution(_BUILD_BOUNDS_S)
        self.builds_failed = 0
        self.stirred = asyncio.Event()  # set when something was built or used

    async def resolve(
        self, requirements: Sequence[str], python_version: str, tenant_id: UUID
    ) -> Lock:
        """Pin requirements to wheels with hashes: see `Resolver`."""
        return await self._resolver.resolve(requirements, python_version, tenant_id)

    def key_of(self, *, tenant_id: UUID, python_version: str, digest: str) -> str:
        """Return the key of a tenant's environment for a lock on this machine; "" without one."""
        if not digest:
            return ""
        return environment_key(
            tenant_id=tenant_id, python_version=python_version, platform=_platform(), digest=digest
        )

    def ready(self, key: str) -> Path | None:
        """Return the folder of an environment in use, which stays while it is used; else None."""
        held = self._held.get(key)
        if held is None:
            return None
        held.used_at = time.time()
        self.stirred.set()
        return held.folder

    async def ensure(
        self, key: str, lock: str, digest: str, python_version: str, tenant_id: UUID, on: Progress
    ) -> Path:
        """Return the folder of an environment, built if needed; concurrent callers share it."""
        found = self.ready(key)
        if found is not None:
            return found
        building = self._building.get(key)
        if building is None:
            building = asyncio.create_task(
                self._ensure(key, lock, digest, python_version, tenant_id, on)
            )
            self._building[key] = building
            building.add_done_callback(lambda _: self._building.pop(key, None))
        return await asyncio.shield(building)

    def census(self) -> dict[str, int]:
        """Count the environments in use and those being built."""
        return {"held": len(self._held), "building": len(self._building)}

    async def let_go(self, in_use: frozenset[str]) -> None:
        """Release environments unused for a while, and record the last use of the others."""
        now = time.time()
        for key in in_use & self._held.keys():
            self._held[key].used_at = now
        used = [key for key, held in self._held.items() if held.used_at > held.told_at]
        for key in used:
            self._held[key].told_at = now
            touch(self._held[key].folder, self._held[key].used_at)
        if used:
            with _tolerant("environment_row_delayed"):
                await environments.used(self._pool, used)
        for key, held in list(self._held.items()):
            if key not in in_use and now - held.used_at > _LET_GO_AFTER_S:
                del self._held[key]
                os.close(held.descriptor)

    async def settle(self) -> None:
        """Wait until pending writes of environment rows are done or have failed."""
        while self._telling:
            await asyncio.wait(self._telling)

    def _free(self, key: str) -> None:
        """Release an environment to make room, unless something works in it or was about to."""
        held = self._held.get(key)
        if held is None or time.time() - held.used_at < _JUST_ASKED_FOR_S:
            return
        if self.occupants is not None:
            self.occupants.vacate(key)
            if key in self.occupants.environment_keys():
                return
        del self._held[key]
        os.close(held.descriptor)

    async def _ensure(
        self, key: str, lock: str, digest: str, python_version: str, tenant_id: UUID, on: Progress
    ) -> Path:
        folder = self._root / str(tenant_id) / key
        packages = packages_in(lock)
        row = BuildRow(
            key=key,
            tenant_id=tenant_id,
            python_version=python_version,
            platform=_platform(),
            lock_digest=digest,
            package_count=len(packages),
            incarnation=self._incarnation(),
        )
        rules = await patiently(lambda: self._packages.rules_of(tenant_id))
        forbidden = rules.refused(packages)
        if forbidden:
            raise EnvironmentFailed(refusal(forbidden), retryable=False)
        for _ in range(_TRIES):
            descriptor = pin(folder)
            built = descriptor is None
            if descriptor is None:
                try:
                    await self._build_in_turn(folder, lock, row, on)
                except OSError as problem:
                    raise _refused_by_disk(problem) from None
                descriptor = pin(folder)
            if descriptor is not None:
                break
        else:
            raise EnvironmentFailed("it was removed each time it was built", retryable=True)
        self._held[key] = _Held(folder, descriptor)
        touch(folder, time.time())
        self.stirred.set()
        if built:
            self._tell(self._describe(folder, packages, row))
        else:
            self._tell(environments.ready(self._pool, row))
        return folder

    async def _build_in_turn(self, folder: Path, lock: str, row: BuildRow, on: Progress) -> None:
        # Serialised per tenant: growth of its cache is then due to this build.
        workshop = folder.parent / BUILD
        # Before the lock is taken: under it the tenant's own cache is in use, and cannot be
        # dropped.
        await self._room.enough()
        async with in_turn(workshop / LOCK):
            if folder.is_dir():  # noqa: ASYNC240 - a single stat
                return
            with _tolerant("environment_row_delayed"):
                await environments.begin(self._pool, row)
            await self._build_and_tell(folder, workshop, lock, row, on)

    async def _build_and_tell(
        self, folder: Path, workshop: Path, lock: str, row: BuildRow, on: Progress
    ) -> None:
        packages = packages_in(lock)
        on(packages, "pending", None)
        on(packages, "installing", None)
        began = time.monotonic()
        try:
            if not await self._room.enough():
                raise disk_full()
            if over := await self._quotas.make_room(row.tenant_id, free=self._free):
                raise UvError(over, retryable=True)
            await self._build(folder, workshop, lock, row)
        except UvError as problem:
            self._room.note_unknown()
            self.builds_failed += 1
            on(packages, "failed", round((time.monotonic() - began) * 1000))
            with _tolerant("environment_row_delayed"):
                await environments.failed(self._pool, folder.name, str(problem))
            raise EnvironmentFailed(str(problem), retryable=problem.retryable) from None
        took_ms = round((time.monotonic() - began) * 1000)
        self.build_s.note(took_ms / 1000)
        log.info("environment_built", key=folder.name, packages=len(packages), took_ms=took_ms)
        on(packages, "completed", took_ms)
        with _tolerant("environment_row_delayed"):
            await environments.ready(self._pool, row, took_ms)

    async def _build(self, folder: Path, workshop: Path, lock: str, row: BuildRow) -> None:
        """Build in a staging folder, and rename it to the final one atomically."""
        interpreter = python_of(self._interpreters, row.python_version)
        own = await patiently(lambda: self._packages.own_wheels(row.tenant_id))
        try:
            indexes = await patiently(lambda: self._packages.indexes(row.tenant_id))
        except IndexRefused as problem:
            raise UvError(str(problem), retryable=False) from None
        staged = workshop / "staged"
        try:
            remove_folder(staged)  # left by a process that was killed
            staged.mkdir(mode=0o755)
            lock_file = workshop / "lock"
            lock_file.write_text(lock)
            async with compiler(self._host, interpreter, staged) as compile_modules:
                await self._uv.install(
                    lock_file,
                    staged,
                    folder=workshop,
                    interpreter=interpreter,
                    own=own,
                    indexes=indexes,
                )
                (staged / ".lock").unlink(missing_ok=True)
                await compile_modules()
            staged.rename(folder)
        except OSError as problem:
            raise UvError(f"the disk refused: {problem.strerror}", retryable=True) from None
        finally:
            remove_folder(staged)

    async def _describe(self, folder: Path, packages: Sequence[Package], row: BuildRow) -> None:
        size = await asyncio.to_thread(folder_bytes, folder)
        self._room.note_built(size)
        bom: str | None = None
        try:
            bom = await asyncio.to_thread(
                bill_of_materials, folder, packages, key=row.key, python_version=row.python_version
            )
        except Exception:  # malformed package metadata must only cost this document
            log.exception("bill_of_materials_failed", key=row.key)
        await environments.described(self._pool, row.key, size, bom)

    def _tell(self, work: Coroutine[None, None, None]) -> None:
        async def telling() -> None:
            with _tolerant("environment_row_delayed"):
                await work

        task = asyncio.create_task(telling())
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)


def _refused_by_disk(problem: OSError) -> EnvironmentFailed:
    return EnvironmentFailed(f"the disk of the runner refused: {problem.strerror}", retryable=True)


@functools.cache
def _platform() -> str:
    libc, version = platform.libc_ver()
    return f"linux-{platform.machine()}-{libc or 'musl'}{version}"


@contextlib.contextmanager
def _tolerant(event: str) -> Iterator[None]:
    """Ignore a database outage: these rows only mirror what is on disk."""
    try:
        yield
    except Exception as problem:
        if not passing(problem):
            raise
        log.warning(event, fault=type(problem).__name__)
