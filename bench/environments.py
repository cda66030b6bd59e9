"""Environments: what one costs that is there, and what one costs that is built of cached wheels."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from uv import find_uv_bin

from bench.figures import figure
from bench.flow import running
from services.kit.pg import Pool, open_pool
from services.kit.pythons import find_pythons
from services.runner.domain.package_rules import NO_RULES
from services.runner.gateways.disk import remove_folder
from services.runner.gateways.sandbox.bubblewrap import BubblewrapHost, find_bubblewrap
from services.runner.gateways.sandbox.cgroups import CgroupHost
from services.runner.gateways.sandbox.interpreters import prepare_interpreters
from services.runner.gateways.uv import Uv
from services.runner.gateways.wheel_store import WheelStore
from services.runner.usecases.environment_room import Room, RoomLimits
from services.runner.usecases.environments import Environments
from services.runner.usecases.tenant_packages import TenantPackages
from tests.integration.runner.wheels import make_wheel

_VERSION: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
_TENANT: Final = UUID(int=1)
_KNOWN_TARGET_MS: Final = 20.0
_NEW_TARGET: Final = 1.3
_KNOWN_ROUNDS: Final = 100
_NEW_ROUNDS: Final = 7
# Of the standard library: sources that people wrote, some 250 files.
_PACKAGES: Final = ("asyncio", "email", "json", "http", "logging", "unittest", "xml", "ctypes")


@dataclass(frozen=True, slots=True)
class _Bench:
    """A folder with wheels and environments, beside a running suite's database."""

    folder: Path
    pool: Pool
    host: BubblewrapHost
    interpreters: dict[str, Any]

    def environments(self) -> Environments:
        """Make what a runner makes at its start: it knows of nothing yet."""
        root = self.folder / "environments"
        return Environments(
            root=root,
            uv=Uv(
                env={},
                bubblewrap=find_bubblewrap(),
                wheelhouse=self.folder / "wheels",
                offline=True,
            ),
            host=self.host,
            interpreters=self.interpreters,
            pool=self.pool,
            room=Room(root, self.pool, RoomLimits(bytes_max=1 << 50, free_bytes_min=0)),
            packages=TenantPackages(
                self.pool, WheelStore(self.folder / "own"), root=root, deployment=NO_RULES
            ),
            incarnation=lambda: _TENANT,
        )


async def known_environment() -> dict[str, Any]:
    """Milliseconds until a runner that was just started has an environment that is there."""
    async with _bench() as bench:
        first = bench.environments()
        lock, key, _ = await _built(first)
        await first.settle()
        spans = []
        for _ in range(_KNOWN_ROUNDS):
            environments = bench.environments()
            begin = time.perf_counter()
            await environments.ensure(
                key, lock.text, lock.digest, _VERSION, _TENANT, lambda *_: None
            )
            spans.append((time.perf_counter() - begin) * 1000)
            await environments.settle()
    p99 = sorted(spans)[int(len(spans) * 0.99)]
    found = figure(spans, "ms", "lower", target=_KNOWN_TARGET_MS, floor=0.0)
    return found | {"p99": round(p99, 3)}


async def new_environment() -> dict[str, Any]:
    """Milliseconds to build an environment of cached wheels; the floor is uv alone, as it would."""
    async with _bench() as bench:
        environments = bench.environments()
        lock, _, folder = await _built(environments)
        await environments.settle()
        shop = folder.parent / ".build"
        spans, floors, bare = [], [], []
        for _ in range(_NEW_ROUNDS):
            remove_folder(folder)
            fresh = bench.environments()
            begin = time.perf_counter()
            _, _, folder = await _built(fresh, lock)
            spans.append((time.perf_counter() - begin) * 1000)
            await fresh.settle()
            floors.append(_uv_ms(bench, shop, lock.text, "--compile-bytecode"))
            bare.append(_uv_ms(bench, shop, lock.text))
    floor = sorted(floors)[len(floors) // 2]
    found = figure(spans, "ms", "lower", target=_NEW_TARGET * floor, floor=floor)
    return found | {"uv_without_bytecode_ms": round(sorted(bare)[len(bare) // 2], 3)}


async def _built(environments: Environments, lock: Any = None) -> tuple[Any, str, Path]:
    names = [f"bench-{each}" for each in _PACKAGES]
    lock = lock or await environments.resolve(names, _VERSION, _TENANT)
    key = environments.key_of(tenant_id=_TENANT, python_version=_VERSION, digest=lock.digest)
    folder = await environments.ensure(
        key, lock.text, lock.digest, _VERSION, _TENANT, lambda *_: None
    )
    return lock, key, folder


def _uv_ms(bench: _Bench, shop: Path, lock: str, *more: str) -> float:
    target = bench.folder / "target"
    text = bench.folder / "lock"
    text.write_text(lock)
    python = str(bench.interpreters[_VERSION].executable)
    command = [find_uv_bin(), "pip", "install", "--python", python, "--target", str(target)]
    command += ["--require-hashes", "--no-deps", "--link-mode", "hardlink", "--only-binary"]
    command += [":all:", "--no-config", "--quiet", "--offline", "--find-links"]
    command += [str(bench.folder / "wheels"), "-r", str(text), *more]
    begin = time.perf_counter()
    subprocess.run(
        command, check=True, env={"UV_CACHE_DIR": str(shop / ".cache"), "PATH": "/usr/bin:/bin"}
    )
    span = (time.perf_counter() - begin) * 1000
    remove_folder(target)
    return span


@asynccontextmanager
async def _bench() -> AsyncIterator[_Bench]:
    folder = Path(tempfile.mkdtemp(prefix="qfe-", dir="/tmp"))
    try:
        async with running() as flow:
            await asyncio.to_thread(_make_wheels, folder / "wheels")
            pool = await open_pool(flow.suite.database_url, application_name="bench", size_max=2)
            program = find_bubblewrap()
            assert program is not None, "no bubblewrap: run `make setup`"
            cgroups = CgroupHost.detect(folder)
            try:
                yield _Bench(
                    folder,
                    pool,
                    BubblewrapHost(program, cgroups=cgroups),
                    prepare_interpreters(find_pythons().values(), folder / "agent"),
                )
            finally:
                await pool.close()
                if cgroups is not None:
                    cgroups.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_wheels(folder: Path) -> None:
    library = Path(sysconfig.get_path("stdlib"))
    for name in _PACKAGES:
        files = {
            f"bench_{name}/{path.relative_to(library / name)}": path.read_text("utf-8")
            for path in (library / name).rglob("*.py")
            if "test" not in path.parts
        }
        make_wheel(
            folder, f"bench_{name}", files={f"bench_{name}/marker": uuid.uuid4().hex} | files
        )
