"""Environments that go: by a budget, on a full disk, after a crash; never those in use."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import psutil
import pytest

from services.kit.errors import ResourceExhausted
from services.kit.pg import Pool, open_pool
from services.runner.domain.package_rules import NO_RULES
from services.runner.gateways.environment_folders import evict, pin, sweep
from services.runner.gateways.sandbox.bubblewrap import BubblewrapHost, find_bubblewrap
from services.runner.gateways.sandbox.port import Interpreter
from services.runner.gateways.uv import Uv
from services.runner.gateways.wheel_store import WheelStore
from services.runner.usecases import environments as module
from services.runner.usecases.environment_quota import EnvironmentQuotas
from services.runner.usecases.environment_room import Room, RoomLimits
from services.runner.usecases.environments import EnvironmentFailed, Environments
from services.runner.usecases.tenant_packages import TenantPackages
from tests import factories
from tests.integration.runner.wheels import make_wheel
from tests.support.database import Database

TENANT = UUID("00000000-0000-4000-8000-000000000001")
_MIB = 1 << 20


@dataclass
class House:
    """Environments below a folder, from an index made here."""

    root: Path
    environments: Environments
    room: Room
    version: str
    resolver: Environments

    async def build(self, requirement: str) -> Path:
        lock = await self.resolver.resolve([requirement], self.version, TENANT)
        key = self.environments.key_of(
            tenant_id=TENANT, python_version=self.version, digest=lock.digest
        )
        folder = await self.environments.ensure(
            key, lock.text, lock.digest, self.version, TENANT, lambda *_: None
        )
        await self.environments.settle()
        return folder


@pytest.fixture
def index(tmp_path: Path) -> Path:
    folder = tmp_path / "index"
    for name in ("red", "green", "blue"):
        data = os.urandom(2 * _MIB).hex()
        make_wheel(folder, name, files={f"{name}.py": "x = 1\n", f"{name}.dat": data})
    return folder


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[Pool]:
    found = await open_pool(
        database.url("qflow_runner_engine"), application_name="test", size_max=2
    )
    yield found
    await found.close()


@pytest.fixture
def house(
    tmp_path: Path,
    index: Path,
    interpreter: Interpreter,
    interpreters: dict[str, Interpreter],
    sandbox_host: BubblewrapHost,
    pool: Pool,
) -> Callable[..., House]:
    def make(
        root: Path | None = None,
        *,
        bytes_max: int = 1 << 40,
        free_bytes_min: int = 0,
        resolver: Environments | None = None,
        patience_s: float = 5.0,
    ) -> House:
        root = root or tmp_path / "environments"
        room = Room(root, pool, RoomLimits(bytes_max=bytes_max, free_bytes_min=free_bytes_min))
        environments = Environments(
            root=root,
            uv=Uv(
                env={"UV_OFFLINE": "1", "UV_FIND_LINKS": str(index)}, bubblewrap=find_bubblewrap()
            ),
            host=sandbox_host,
            interpreters=interpreters,
            pool=pool,
            room=room,
            packages=TenantPackages(
                pool, WheelStore(tmp_path / "wheels"), root=root, deployment=NO_RULES
            ),
            incarnation=uuid.uuid4,
            quotas=EnvironmentQuotas(root, pool, patience_s=patience_s),
        )
        return House(root, environments, room, interpreter.version, resolver or environments)

    return make


async def test_the_longest_unused_environment_goes_when_there_are_too_many(
    house: Callable[..., House], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is built again when it is wanted again."""
    monkeypatch.setattr(module, "_LET_GO_AFTER_S", -1)
    home = house(bytes_max=11 * _MIB)
    red, green = await home.build("red"), await home.build("green")
    os.utime(red, (1, 1))
    await home.environments.let_go(frozenset())
    os.utime(red, (1, 1))
    await home.room.keep()
    assert (red.is_dir(), green.is_dir()) == (True, True)
    blue = await home.build("blue")
    await home.environments.let_go(frozenset())
    os.utime(red, (1, 1))
    await home.room.keep()
    assert (red.is_dir(), green.is_dir(), blue.is_dir()) == (False, True, True)
    with database.connect() as sql:
        states: dict[str, str] = dict(sql.execute("SELECT key, state FROM environments").fetchall())
    assert {red.name: "evicted", green.name: "ready", blue.name: "ready"} == states
    assert home.environments.ready(red.name) is None
    assert red == await home.build("red")
    assert (red / "red.py").is_file()


async def test_an_environment_in_use_stays_whoever_makes_room(
    house: Callable[..., House],
) -> None:
    """Also where it is another runner of the same home that would like the room."""
    home = house()
    red = await home.build("red")
    greedy = house(bytes_max=0)
    await greedy.room.keep()
    assert red.is_dir()
    await home.environments.let_go(frozenset({red.name}))
    assert not evict(red)
    assert home.environments.ready(red.name) == red


async def test_an_environment_is_let_go_once_no_sandbox_has_it(
    house: Callable[..., House], monkeypatch: pytest.MonkeyPatch, database: Database
) -> None:
    monkeypatch.setattr(module, "_LET_GO_AFTER_S", -1)
    home = house()
    red = await home.build("red")
    with database.connect() as sql:
        sql.execute("UPDATE environments SET last_used_at = 'yesterday'")
        home.environments.ready(red.name)
        await home.environments.let_go(frozenset({red.name}))
        assert home.environments.ready(red.name) == red
        [(fresh,)] = sql.execute(
            "SELECT last_used_at > now() - interval '1 minute' FROM environments"
        ).fetchall()
    assert fresh
    await home.environments.let_go(frozenset())
    assert home.environments.ready(red.name) is None
    assert evict(red)


async def test_a_known_environment_is_found_on_disk_and_not_built_again(
    house: Callable[..., House], database: Database
) -> None:
    red = await house().build("red")
    before = red.stat().st_ino
    with database.connect() as sql:
        sql.execute("DELETE FROM environments")
        again = house()
        assert red == await again.build("red")
        assert before == red.stat().st_ino
        rows = sql.execute("SELECT state, build_ms FROM environments").fetchall()
    assert [("ready", None)] == rows


def test_whoever_opens_an_environment_has_it_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "tenant" / "key"
    folder.mkdir(parents=True)
    (folder / "module.py").touch()
    descriptor = pin(folder)
    assert descriptor is not None
    assert not evict(folder)
    os.close(descriptor)
    assert evict(folder)
    assert pin(folder) is None
    assert not evict(folder)
    assert [] == [*(tmp_path / "tenant" / ".build").iterdir()]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


async def test_a_build_that_fills_the_disk_fails_for_now_and_leaves_nothing(
    house: Callable[..., House], small_disk: Path, index: Path, database: Database
) -> None:
    """F27."""
    huge = {"huge.py": "", "huge.dat": os.urandom(14 * _MIB).hex()}
    make_wheel(index, "huge", files=huge)
    home = house(small_disk, resolver=house().environments)
    with pytest.raises(EnvironmentFailed, match="disk") as failed:
        await home.build("huge")
    assert failed.value.retryable
    assert [".build"] == os.listdir(small_disk / str(TENANT))  # noqa: PTH208
    assert "staged" not in os.listdir(small_disk / str(TENANT) / ".build")  # noqa: PTH208
    with database.connect() as sql:
        [(state, error)] = sql.execute("SELECT state, error FROM environments").fetchall()
    assert ("failed", "the disk of the runner is full") == (state, error)
    red = await home.build("red")  # smaller ones still fit
    assert red.is_dir()


async def test_a_short_disk_is_given_room_before_a_build(
    house: Callable[..., House], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F27: what nobody uses makes room for what somebody wants."""
    monkeypatch.setattr(module, "_LET_GO_AFTER_S", -1)
    home = house(small_disk, free_bytes_min=21 * _MIB, resolver=house().environments)
    red = await home.build("red")
    await home.environments.let_go(frozenset())
    blue = await home.build("blue")
    assert (red.is_dir(), blue.is_dir()) == (False, True)
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (12 * _MIB))
    with pytest.raises(EnvironmentFailed, match="full") as failed:
        await home.build("red")
    assert failed.value.retryable


async def test_requirements_that_a_full_disk_cannot_pin_are_refused_for_now(
    house: Callable[..., House],
) -> None:
    """F27: as an upload of a wheel is, under the same code."""
    with pytest.raises(ResourceExhausted) as refused:
        await house(free_bytes_min=1 << 60).build("red")
    assert "RUNNER_DISK_FULL" == refused.value.reason
    assert refused.value.retry_after_s


@dataclass
class Sandboxes:
    """Environments that sandboxes have: some work, all others are idle."""

    working: set[str] = field(default_factory=set)
    vacated: list[str] = field(default_factory=list)

    def environment_keys(self) -> frozenset[str]:
        return frozenset(self.working)

    def vacate(self, environment_key: str) -> None:
        self.vacated.append(environment_key)


@pytest.fixture
def quota(database: Database) -> Iterator[Callable[..., None]]:
    """Says what the tenant may have of environments."""
    with database.connect() as sql:
        sql.execute("INSERT INTO tenants (id, kind, name) VALUES (%s, 'team', 't')", (TENANT,))
        user = factories.user(sql).id

        def say(environments: int | None = None, environment_bytes: int | None = None) -> None:
            sql.execute(
                "INSERT INTO tenant_quotas AS q (tenant_id, environments, environment_bytes,"
                " updated_by) VALUES (%s, %s, %s, %s) ON CONFLICT (tenant_id) DO UPDATE"
                " SET environments = EXCLUDED.environments,"
                " environment_bytes = EXCLUDED.environment_bytes",
                (TENANT, environments, environment_bytes, user),
            )

        yield say


async def test_for_one_more_than_the_quota_says_the_longest_unused_goes(
    house: Callable[..., House],
    quota: Callable[..., None],
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though this runner held it in case somebody asks: what is idle in it ends."""
    monkeypatch.setattr(module, "_JUST_ASKED_FOR_S", 0)
    quota(environments=2)
    home = house()
    sandboxes = home.environments.occupants = Sandboxes()
    red, green = await home.build("red"), await home.build("green")
    os.utime(red, (1, 1))
    blue = await home.build("blue")
    assert (False, True, True) == (red.is_dir(), green.is_dir(), blue.is_dir())
    assert [red.name] == sandboxes.vacated
    assert home.environments.ready(red.name) is None
    with database.connect() as sql:
        states: dict[str, str] = dict(sql.execute("SELECT key, state FROM environments").fetchall())
    assert {red.name: "evicted", green.name: "ready", blue.name: "ready"} == states


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"environments": 1}, "environments is 1, and 1 of it"),
        ({"environment_bytes": _MIB}, "environment_bytes is 1048576"),
    ],
)
async def test_an_environment_in_use_stays_and_the_quota_is_named(
    said: dict[str, int],
    told: str,
    house: Callable[..., House],
    quota: Callable[..., None],
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_JUST_ASKED_FOR_S", 0)
    quota(**said)
    home = house(patience_s=0.3)
    red = await home.build("red")
    home.environments.occupants = Sandboxes({red.name})
    with pytest.raises(EnvironmentFailed, match=told) as failed:
        await home.build("blue")
    assert failed.value.retryable
    assert red.is_dir()
    assert red == await home.build("red")  # what is there is no new one
    with database.connect() as sql:
        query = "SELECT error FROM environments WHERE state = 'failed'"
        [(error,)] = sql.execute(query).fetchall()
    assert told in error
    home.environments.occupants = Sandboxes()
    assert (await home.build("blue")).is_dir()
    assert not red.is_dir()


async def test_a_build_waits_for_an_environment_to_become_idle(
    house: Callable[..., House], quota: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_JUST_ASKED_FOR_S", 0)
    quota(environments=1)
    home = house(patience_s=30)
    red = await home.build("red")
    sandboxes = home.environments.occupants = Sandboxes({red.name})
    building = asyncio.create_task(home.build("blue"))
    async with asyncio.timeout(30):
        while not sandboxes.vacated:  # noqa: ASYNC110  # it tells nobody that it looked
            await asyncio.sleep(0.01)
    assert red.is_dir()
    sandboxes.working.clear()
    assert (await building).is_dir()
    assert not red.is_dir()


def test_what_killed_builds_left_is_swept(tmp_path: Path) -> None:
    """CP8: the folder of a build, its bytecode, half a download, half of what was removed."""
    shop = tmp_path / str(TENANT) / ".build"
    for name in ("staged/half", "bytecode-1/x", "gone-1/y", ".cache/.tmpabc/z", ".cache/kept"):
        (shop / name).mkdir(parents=True)
    (shop / "lock").touch()
    ready = tmp_path / str(TENANT) / "py3.11-ready"
    ready.mkdir()
    assert 5 == sweep(tmp_path)
    assert [".cache", ".lock"] == sorted(each.name for each in shop.iterdir())
    assert ["kept"] == [each.name for each in (shop / ".cache").iterdir()]
    assert ready.is_dir()
    assert 0 == sweep(tmp_path)


def test_what_another_runner_is_building_is_not_swept(tmp_path: Path) -> None:
    shop = tmp_path / str(TENANT) / ".build"
    (shop / "staged").mkdir(parents=True)
    with (shop / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert 0 == sweep(tmp_path)
    assert (shop / "staged").is_dir()


_BUILD = """
import asyncio, sys
from pathlib import Path
from services.kit.pythons import ask
from services.runner.gateways.sandbox.bubblewrap import find_bubblewrap
from services.runner.gateways.sandbox.port import Interpreter
from services.runner.gateways.uv import Uv

shop, index, program = map(Path, sys.argv[1:])
found = ask(program)
python = Interpreter(
    version=found.version, executable=found.path, prefix=found.prefix, agent=found.path
)
uv = Uv(env={"UV_FIND_LINKS": str(index), "UV_OFFLINE": "1"}, bubblewrap=find_bubblewrap())
staged = shop / "staged"
staged.mkdir(parents=True)
asyncio.run(uv.install(shop / "lock", staged, folder=shop, interpreter=python))
"""


async def test_a_runner_that_is_killed_in_the_middle_of_an_installation_leaves_it_to_the_next(
    house: Callable[..., House], index: Path, interpreter: Interpreter
) -> None:
    """CP8: uv ends with it, what was half there is swept, and the build is made anew."""
    many = {f"many/file{at}.dat": os.urandom(2000).hex() for at in range(6000)}
    make_wheel(index, "many", files={"many/__init__.py": "", **many})
    home = house()
    lock = await home.resolver.resolve(["many"], home.version, TENANT)
    shop = home.root / str(TENANT) / ".build"
    shop.mkdir(parents=True)
    (shop / "lock").write_text(lock.text)
    command = [sys.executable, "-c", _BUILD, shop, index, interpreter.executable]
    with subprocess.Popen([str(each) for each in command]) as runner:  # noqa: ASYNC220
        async with asyncio.timeout(30):
            while not any((shop / ".cache").glob(".tmp*/*")) and not any(  # noqa: ASYNC110
                (shop / "staged").glob("*")
            ):
                await asyncio.sleep(0.002)
        runner.kill()
    left = psutil.process_iter(["cmdline"])
    async with asyncio.timeout(30):
        while any(str(shop) in " ".join(each.info["cmdline"] or ()) for each in left):
            await asyncio.sleep(0.05)
            left = psutil.process_iter(["cmdline"])
    assert sweep(home.root) > 0
    assert not (shop / "staged").exists()
    folder = await home.build("many")
    assert 6001 == len(list((folder / "many").glob("*.*")))
