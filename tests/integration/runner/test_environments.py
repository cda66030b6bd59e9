"""Environments from wheels made here: resolved, built once, immutable, told as they are built."""

from __future__ import annotations

import asyncio
import os
import tarfile
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from services.kit import child
from services.kit.errors import FailedPrecondition, InvalidArgument
from services.kit.pg import open_pool
from services.runner.domain.environments import packages_in
from services.runner.domain.package_rules import NO_RULES
from services.runner.gateways.disk import DiskFullError, within
from services.runner.gateways.sandbox.bubblewrap import BubblewrapHost, find_bubblewrap
from services.runner.gateways.sandbox.bytecode import take_over
from services.runner.gateways.sandbox.port import Interpreter
from services.runner.gateways.uv import Uv, UvError
from services.runner.gateways.wheel_store import WheelStore
from services.runner.usecases.environment_room import Room, RoomLimits
from services.runner.usecases.environments import EnvironmentFailed, Environments
from services.runner.usecases.tenant_packages import TenantPackages
from tests.integration.runner.conftest import Start
from tests.integration.runner.wheels import make_wheel
from tests.support.database import Database

TENANT = UUID("00000000-0000-4000-8000-000000000001")


@pytest.fixture
def index(tmp_path: Path) -> Path:
    folder = tmp_path / "index"
    make_wheel(folder, "greeter", files={"greeter.py": "def greet(): return 'hello'\n"})
    make_wheel(folder, "polite", files={"polite.py": ""}, requires=("greeter>=1",))
    make_wheel(
        folder,
        "hostile",
        files={
            "hostile.py": "",
            "hostile.pth": "import os; open('/tmp/pwned','w').close()\n",
            "sitecustomize.py": "import os; open('/tmp/pwned','w').close()\n",
        },
    )
    source = tmp_path / "setup.py"
    source.write_text("open('/tmp/pwned', 'w').close()\n")
    with tarfile.open(folder / "sourceonly-1.0.tar.gz", "w:gz") as archive:
        archive.add(source, "sourceonly-1.0/setup.py")
    return folder


@pytest.fixture
async def environments(
    tmp_path: Path,
    index: Path,
    interpreters: dict[str, Interpreter],
    sandbox_host: BubblewrapHost,
    database: Database,
) -> AsyncIterator[Environments]:
    pool = await open_pool(database.url("qflow_runner_engine"), application_name="test", size_max=2)
    root = tmp_path / "environments"
    env = {"UV_OFFLINE": "1", "UV_FIND_LINKS": str(index)}
    found = Environments(
        root=root,
        uv=Uv(env=env, bubblewrap=find_bubblewrap()),
        host=sandbox_host,
        interpreters=interpreters,
        pool=pool,
        room=Room(root, pool, RoomLimits(bytes_max=1 << 40, free_bytes_min=0)),
        packages=TenantPackages(
            pool, WheelStore(tmp_path / "wheels"), root=root, deployment=NO_RULES
        ),
        incarnation=uuid.uuid4,
    )
    yield found
    await found.settle()
    await pool.close()


async def build(
    environments: Environments, *requirements: str, version: str, tenant_id: UUID = TENANT
) -> tuple[Path, Any]:
    lock = await environments.resolve(requirements, version, tenant_id)
    key = environments.key_of(tenant_id=tenant_id, python_version=version, digest=lock.digest)
    told: list[tuple[str, int]] = []

    def on(packages: Any, status: str, _time_ms: int | None) -> None:
        told.append((status, len(packages)))

    folder = await environments.ensure(key, lock.text, lock.digest, version, tenant_id, on)
    return folder, told


async def test_an_environment_is_built_from_its_lock_and_used(
    environments: Environments, interpreter: Interpreter, start: Start, database: Database
) -> None:
    """Technique 5: hash-pinned, compiled, mounted read-only."""
    folder, told = await build(environments, "polite", version=interpreter.version)
    assert [("pending", 2), ("installing", 2), ("completed", 2)] == told
    assert list(folder.rglob("greeter.*.pyc"))
    assert (folder / "greeter.py").stat().st_nlink > 1  # from the cache, not a copy
    box = await start(
        "import greeter, polite\n"
        "def main():\n"
        "    try:\n"
        "        open(greeter.__file__, 'a')\n"
        "    except OSError as problem:\n"
        "        return [greeter.greet(), problem.strerror]\n",
        environment=folder,
    )
    greeting, refused = await box.value()
    assert "hello" == greeting
    assert refused in {"Permission denied", "Read-only file system"}
    await environments.settle()
    with database.connect() as sql:
        [(state, path, size)] = sql.execute(
            "SELECT state, path, size_bytes FROM environments"
        ).fetchall()
    assert ("ready", f"{TENANT}/{folder.name}") == (state, path)
    assert size > 0


async def test_equal_needs_share_one_build(
    environments: Environments, interpreter: Interpreter
) -> None:
    lock = await environments.resolve(["greeter"], interpreter.version, TENANT)
    key = environments.key_of(
        tenant_id=TENANT, python_version=interpreter.version, digest=lock.digest
    )
    told: list[str] = []

    def on(_packages: Any, status: str, _time_ms: int | None) -> None:
        told.append(status)

    folders = await asyncio.gather(
        *(
            environments.ensure(key, lock.text, lock.digest, interpreter.version, TENANT, on)
            for _ in range(5)
        )
    )
    assert 1 == len(set(folders))
    assert 1 == told.count("installing")
    assert [("greeter", "1.0")] == [(each.name, each.version) for each in packages_in(lock.text)]


async def test_tenants_share_neither_an_environment_nor_a_cache(
    environments: Environments, interpreter: Interpreter
) -> None:
    """Environments key on the tenant."""
    mine, _ = await build(environments, "greeter", version=interpreter.version)
    other, _ = await build(
        environments, "greeter", version=interpreter.version, tenant_id=UUID(int=2)
    )
    assert mine.name != other.name
    assert (mine / "greeter.py").stat().st_ino != (other / "greeter.py").stat().st_ino


async def test_sources_that_take_too_much_to_compile_are_left_and_the_rest_is_compiled(
    environments: Environments, interpreter: Interpreter, index: Path
) -> None:
    """B96 at the build: one takes all the memory of the sandbox, one is too large to be tried."""
    greedy = "x=[" + "{a:b}," * (300 * 1024) + "]\n"
    files = {"greedy.py": greedy, "large.py": "x = 1\n" * (400 * 1024), "small.py": "x = 1\n"}
    make_wheel(index, "greedy", files=files)
    folder, told = await build(environments, "greedy", version=interpreter.version)
    assert ("completed", 1) == told[-1]
    assert ["small"] == [path.name.split(".")[0] for path in folder.rglob("*.pyc")]


def test_of_what_a_compiler_left_only_bytecode_is_taken(tmp_path: Path) -> None:
    """B109: links, pipes and what belongs to no source lead nowhere."""
    folder, made, outside = (tmp_path / name for name in ("folder", "made", "outside"))
    for name in ("good", "linked"):
        (folder / name).mkdir(parents=True)
        (folder / name / "m.py").touch()
    (outside / "__pycache__").mkdir(parents=True)
    (outside / "__pycache__" / "m.cpython-311.pyc").write_text("theirs")
    cached = made / "good" / "__pycache__"
    cached.mkdir(parents=True)
    (cached / "m.cpython-311.pyc").write_text("compiled")
    (cached / "m.cpython-312.pyc").symlink_to(outside / "__pycache__" / "m.cpython-311.pyc")
    (cached / "m.cpython-313.pyc").hardlink_to(outside / "__pycache__" / "m.cpython-311.pyc")
    os.mkfifo(cached / "m.cpython-314.pyc")
    (cached / "other.cpython-311.pyc").touch()
    (made / "linked").symlink_to(outside)
    take_over(made, folder)
    assert ["compiled"] == [path.read_text() for path in folder.rglob("*.pyc")]
    assert "theirs" == (outside / "__pycache__" / "m.cpython-311.pyc").read_text()


async def test_packages_that_take_too_much_room_are_refused(
    tmp_path: Path, index: Path, interpreter: Interpreter
) -> None:
    """Nothing of them stays, not even in the cache."""
    make_wheel(index, "wide", files={"wide.py": "", "data": "x" * (4 << 20)})
    uv = Uv(
        env={"UV_OFFLINE": "1", "UV_FIND_LINKS": str(index)},
        bubblewrap=find_bubblewrap(),
        install_bytes_max=5 << 20,
    )
    shop = tmp_path / "shop"
    lock = await uv.resolve(
        ["wide", "greeter"],
        folder=shop,
        python_version=interpreter.version,
        interpreter=interpreter,
    )
    (shop / "lock").write_text(lock)
    await uv.install(shop / "lock", shop / "fits", folder=shop, interpreter=interpreter)
    make_wheel(index, "wider", files={"wider.py": "", "data": "x" * (4 << 20) + "y"})
    lock = await uv.resolve(
        ["wide", "wider"],
        folder=shop,
        python_version=interpreter.version,
        interpreter=interpreter,
    )
    (shop / "lock").write_text(lock)
    with pytest.raises(UvError, match="limit") as refused:
        await uv.install(shop / "lock", shop / "full", folder=shop, interpreter=interpreter)
    assert not refused.value.retryable
    assert not (shop / ".cache").exists()


async def test_work_that_fills_the_disk_is_ended_while_it_does() -> None:
    """And not only when it is done."""
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(DiskFullError):
        await within(work(), used=lambda: 2, bytes_max=1)
    assert ended.is_set()


async def test_uv_sees_its_folder_and_the_system_and_no_more(
    tmp_path: Path, interpreter: Interpreter
) -> None:
    """What a requirement or an index could lead uv itself to."""
    shop = tmp_path / "shop"
    shop.mkdir()
    (tmp_path / "secret").touch()
    walls, descriptors = Uv(env={}, bubblewrap=find_bubblewrap()).walls(shop, interpreter)
    code = "import ctypes, os, sys\nprint(os.listdir(sys.argv[1]), os.path.exists('/etc/passwd'),"
    code += " os.path.exists('/proc/1'), ctypes.CDLL(None).unshare(0x10000000))\n"
    code += "open(sys.argv[1] + '/shop/x', 'w').close()"
    python = [str(interpreter.executable), "-I", "-S", "-c", code, str(tmp_path)]
    done = await child.run(
        [*walls, *python],
        stdin=b"",
        env={},
        timeout_s=20,
        output_bytes_max=10_000,
        keep_stderr=True,
        pass_fds=descriptors,
    )
    for descriptor in descriptors:
        os.close(descriptor)
    assert b"['shop'] False False -1\n" == done.stdout, done.stderr
    assert (shop / "x").exists()


async def test_hostile_path_files_are_never_read(
    environments: Environments, interpreter: Interpreter, start: Start
) -> None:
    """B109: neither at the build nor in the sandbox."""
    folder, _ = await build(environments, "hostile", version=interpreter.version)
    box = await start(
        "import os, hostile\ndef main():\n    return os.path.exists('/tmp/pwned')\n",
        environment=folder,
    )
    assert False is await box.value()
    assert "pwned" not in os.listdir("/tmp")  # noqa: PTH208


@pytest.mark.parametrize(
    "requirement",
    [
        "--index-url=http://x",
        "-r /etc/passwd",
        "-e .",
        "git+https://example.org/x",
        "file:///etc/passwd",
        "./local",
        "pkg @ https://example.org/x.whl",
        "greeter\npolite",
        "greeter; python_version > '3'",
        "gr\u0435eter",
        "..",
        "greeter===1.0",
        "greeter==*",
        "greeter===\u2028--index-url=http://x",
        "greeter>=1\u2028-e .",
        "",
    ],
)
async def test_only_names_extras_and_versions_are_requirements(
    environments: Environments, interpreter: Interpreter, requirement: str
) -> None:
    """B84-B91."""
    with pytest.raises(InvalidArgument) as refused:
        await environments.resolve([requirement], interpreter.version, TENANT)
    assert "INVALID_REQUIREMENT" == refused.value.reason


async def test_what_cannot_be_met_says_why(
    environments: Environments, interpreter: Interpreter
) -> None:
    """B92-B94: missing, conflicting, source only; no source is ever built."""
    for requirements in (["absent-package"], ["greeter==2"], ["polite", "greeter==0.5"]):
        with pytest.raises(InvalidArgument) as refused:
            await environments.resolve(requirements, interpreter.version, TENANT)
        assert "REQUIREMENTS_UNSATISFIABLE" == refused.value.reason
        assert "http" not in str(refused.value)
    with pytest.raises(InvalidArgument) as refused:
        await environments.resolve(["sourceonly"], interpreter.version, TENANT)
    assert "NO_BINARY" == refused.value.reason
    assert "upload it (WheelService.UploadWheel)" in str(refused.value)
    assert "pwned" not in os.listdir("/tmp")  # noqa: PTH208
    with pytest.raises(FailedPrecondition):
        await environments.resolve(["greeter"], "3.99", TENANT)


async def test_a_wheel_that_is_not_the_locked_one_is_refused(
    environments: Environments, interpreter: Interpreter, database: Database
) -> None:
    """B94: hash mismatch."""
    lock = f"greeter==1.0 --hash=sha256:{'0' * 64}\n"
    key = environments.key_of(tenant_id=TENANT, python_version=interpreter.version, digest="0" * 64)
    with pytest.raises(EnvironmentFailed) as failed:
        await environments.ensure(key, lock, "0" * 64, interpreter.version, TENANT, lambda *_: None)
    assert not failed.value.retryable
    with database.connect() as sql:
        assert [("failed",)] == sql.execute("SELECT state FROM environments").fetchall()


async def test_an_index_that_is_down_may_be_asked_again(
    tmp_path: Path, interpreter: Interpreter
) -> None:
    """B94: only then; and its address stays with the operator."""
    uv = Uv(
        env={"UV_DEFAULT_INDEX": "http://127.0.0.1:1/simple", "UV_HTTP_RETRIES": "0"},
        bubblewrap=find_bubblewrap(),
    )
    with pytest.raises(UvError) as failed:
        await uv.resolve(
            ["greeter"],
            folder=tmp_path,
            python_version=interpreter.version,
            interpreter=interpreter,
        )
    assert failed.value.retryable
    assert "127.0.0.1:1/simple" not in str(failed.value)
