"""Packages of a tenant's own: wheels that are checked, and rules that hold."""

from __future__ import annotations

import asyncio
import hashlib
import http.server
import io
import json
import os
import struct
import threading
import uuid
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from services.kit.caller import Caller
from services.kit.errors import (
    AlreadyExists,
    DataLoss,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from services.kit.pg import Pool, open_pool
from services.runner.domain.package_rules import NO_RULES, PackageRules
from services.runner.gateways.sandbox.bubblewrap import BubblewrapHost, find_bubblewrap
from services.runner.gateways.sandbox.port import Interpreter
from services.runner.gateways.uv import Uv
from services.runner.gateways.wheel_store import WheelStore
from services.runner.storage.wheels import StoredWheel
from services.runner.usecases.environment_room import Room, RoomLimits
from services.runner.usecases.environments import EnvironmentFailed, Environments
from services.runner.usecases.package_rules import set_rules
from services.runner.usecases.tenant_packages import TenantPackages
from services.runner.usecases.wheels import Announced, WheelLimits, Wheels
from tests import factories
from tests.integration.runner.wheels import make_wheel
from tests.support.database import Database

_NAME = "mine-1.0-py3-none-any.whl"


@pytest.fixture
async def engine_pool(database: Database) -> AsyncIterator[Pool]:
    pool = await open_pool(database.url("qflow_runner_engine"), application_name="t", size_max=2)
    yield pool
    await pool.close()


@pytest.fixture
async def api_pool(database: Database) -> AsyncIterator[Pool]:
    pool = await open_pool(database.url("qflow_runner"), application_name="t", size_max=4)
    yield pool
    await pool.close()


@pytest.fixture
def caller(database: Database) -> Caller:
    with database.connect() as sql:
        return caller_of(factories.user(sql))


def caller_of(user: factories.User) -> Caller:
    return Caller(
        user_id=user.id,
        tenant_id=user.id,
        role="user",
        is_owner=False,
        scopes="all",
        kind="user",
        name="u",
        session_id=uuid.uuid4(),
        expires_at=datetime.now(UTC) + timedelta(hours=1),
    )


@pytest.fixture
def store(tmp_path: Path) -> WheelStore:
    return WheelStore(tmp_path / "wheels")


@pytest.fixture
def wheels(api_pool: Pool, store: WheelStore) -> Wheels:
    return Wheels(api_pool, store, WheelLimits(bytes_max=1 << 20, tenant_bytes_max=3 << 20))


Make = Callable[..., Environments]


@pytest.fixture
def index(tmp_path: Path) -> Path:
    folder = tmp_path / "index"
    make_wheel(folder, "mine", "9.0", files={"mine.py": "WHOSE = 'the index'\n"})
    make_wheel(folder, "user", files={"user.py": ""}, requires=("mine",))
    make_wheel(folder, "old", "1.0", files={"old.py": ""})
    make_wheel(folder, "old", "2.0", files={"old.py": ""})
    return folder


@pytest.fixture
def make(
    tmp_path: Path,
    index: Path,
    engine_pool: Pool,
    store: WheelStore,
    interpreters: dict[str, Interpreter],
    sandbox_host: BubblewrapHost,
) -> Make:
    def making(deployment: PackageRules = NO_RULES, uv: Uv | None = None) -> Environments:
        root = tmp_path / "environments"
        return Environments(
            root=root,
            uv=uv or Uv(env={}, bubblewrap=find_bubblewrap(), wheelhouse=index, offline=True),
            host=sandbox_host,
            interpreters=interpreters,
            pool=engine_pool,
            room=Room(root, engine_pool, RoomLimits(bytes_max=1 << 40, free_bytes_min=0)),
            packages=TenantPackages(engine_pool, store, root=root, deployment=deployment),
            incarnation=uuid.uuid4,
        )

    return making


async def upload(
    wheels: Wheels, caller: Caller, data: bytes, name: str = _NAME, **wrong: object
) -> StoredWheel:
    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 1000):
            yield data[at : at + 1000]

    announced = {
        "filename": name,
        "size_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        **wrong,
    }
    return await wheels.take(caller, Announced(**announced), chunks())  # type: ignore[arg-type]


def wheel_bytes(tmp_path: Path, name: str = "mine", version: str = "1.0", **how: object) -> bytes:
    files = how.pop("files", {f"{name}.py": "WHOSE = 'mine'\n"})
    return make_wheel(tmp_path / "made", name, version, files=files, **how).read_bytes()  # type: ignore[arg-type]


async def build(environments: Environments, requirement: str, caller: Caller, version: str) -> Path:
    lock = await environments.resolve([requirement], version, caller.tenant_id)
    key = environments.key_of(
        tenant_id=caller.tenant_id, python_version=version, digest=lock.digest
    )
    folder = await environments.ensure(
        key, lock.text, lock.digest, version, caller.tenant_id, lambda *_: None
    )
    await environments.settle()
    return folder


async def test_an_own_wheel_stands_before_any_index_and_for_its_tenant_alone(
    wheels: Wheels,
    make: Make,
    caller: Caller,
    interpreter: Interpreter,
    tmp_path: Path,
    database: Database,
) -> None:
    """X14, X29: and a newer one of the same name elsewhere changes nothing."""
    stored = await upload(wheels, caller, wheel_bytes(tmp_path))
    assert ("mine", "1.0", []) == (stored.name, stored.version, stored.requirements)
    environments = make()
    folder = await build(environments, "user", caller, interpreter.version)
    assert "WHOSE = 'mine'\n" == (folder / "mine.py").read_text()
    with database.connect() as sql:
        other = caller_of(factories.user(sql))
    folder = await build(environments, "user", other, interpreter.version)
    assert "WHOSE = 'the index'\n" == (folder / "mine.py").read_text()
    assert [] == await wheels.list(other, after=None, limit=10)
    with pytest.raises(NotFound):
        await wheels.get(other, stored.id)
    with pytest.raises(NotFound):
        await wheels.delete(other, stored.id, None)
    assert stored == await wheels.get(caller, stored.id)
    await wheels.delete(caller, stored.id, None)
    lock = await environments.resolve(["mine"], interpreter.version, caller.tenant_id)
    assert lock.text.startswith("mine==9.0 ")


async def test_the_same_bytes_again_are_the_same_wheel_and_others_are_refused(
    wheels: Wheels, caller: Caller, tmp_path: Path, store: WheelStore
) -> None:
    data = wheel_bytes(tmp_path)
    both = await asyncio.gather(upload(wheels, caller, data), upload(wheels, caller, data))
    assert both[0] == both[1]
    assert both[0] == await upload(wheels, caller, data)
    with pytest.raises(AlreadyExists):
        await upload(wheels, caller, wheel_bytes(tmp_path, files={"mine.py": "1"}))
    kept = [*(tmp_path / "wheels" / str(caller.tenant_id)).iterdir()]
    assert [str(both[0].id)] == [each.name for each in kept]
    assert 0 == store.sweep(caller.tenant_id, {both[0].id})


async def test_bytes_that_are_not_what_was_announced_are_refused(
    wheels: Wheels, caller: Caller, tmp_path: Path
) -> None:
    data = wheel_bytes(tmp_path)
    for wrong in ({"sha256": "0" * 64}, {"size_bytes": len(data) + 1}, {"size_bytes": 1}):
        with pytest.raises(DataLoss):
            await upload(wheels, caller, data, **wrong)
    assert [] == [*(tmp_path / "wheels" / str(caller.tenant_id)).iterdir()]


async def test_wheels_have_room_to_keep_to(wheels: Wheels, caller: Caller, tmp_path: Path) -> None:
    with pytest.raises(ResourceExhausted):
        await upload(wheels, caller, b"x" * (1 << 20) + b"x")
    for name in ("one", "two", "three"):
        data = wheel_bytes(tmp_path, name, files={f"{name}.dat": "x" * 900_000})
        await upload(wheels, caller, data, f"{name}-1.0-py3-none-any.whl")
    data = wheel_bytes(tmp_path, "four", files={"four.dat": "x" * 900_000})
    with pytest.raises(ResourceExhausted):
        await upload(wheels, caller, data, "four-1.0-py3-none-any.whl")


_INFO = "mine-1.0.dist-info"
_METADATA = "Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n"
_WHEEL = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_GOOD = {f"{_INFO}/METADATA": _METADATA, f"{_INFO}/WHEEL": _WHEEL, f"{_INFO}/RECORD": ""}


def zipped(files: dict[str, str | bytes], *, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", method) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return raw.getvalue()


def with_link() -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        for name, text in _GOOD.items():
            archive.writestr(name, text)
        link = zipfile.ZipInfo("mine.py")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    return raw.getvalue()


def with_overlap() -> bytes:
    """Two entries of the central directory for one file's bytes."""
    data = bytearray(zipped({**_GOOD, "mine.dat": "0" * 100_000}))
    start = data.rindex(b"PK\x01\x02")
    end = data.rindex(b"PK\x05\x06")
    entry = data[start:end].replace(b"mine.dat", b"more.dat")
    data[end:end] = entry
    at = end + len(entry)
    count = struct.unpack_from("<H", data, at + 8)[0] + 1
    size = struct.unpack_from("<I", data, at + 12)[0] + len(entry)
    struct.pack_into("<HHI", data, at + 8, count, count, size)
    return bytes(data)


def with_lie() -> bytes:
    """A file that says that it is smaller than it unpacks to."""
    data = bytearray(zipped({**_GOOD, "mine.dat": "0" * 100_000}))
    at = data.rindex(b"PK\x01\x02")
    struct.pack_into("<I", data, at + 24, 10)
    return bytes(data)


_HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "no zip": (lambda: b"PK" + b"\0" * 100, "zip"),
    "path": (lambda: zipped({**_GOOD, "../evil.py": ""}), "refused"),
    "absolute": (lambda: zipped({**_GOOD, "/etc/evil": ""}), "refused"),
    "backslash": (lambda: zipped({**_GOOD, "a\\..\\evil": ""}), "refused"),
    "control": (lambda: zipped({**_GOOD, "a\nb": ""}), "refused"),
    "link": (with_link, "link"),
    "file and folder": (lambda: zipped({**_GOOD, "a": "", "a/b": ""}), "folder"),
    "bomb": (lambda: zipped({**_GOOD, "mine.dat": b"\0" * (200 << 20)}), "packed"),
    "overlap": (with_overlap, "overlap"),
    "lie": (with_lie, "CRC-32"),
    "no metadata": (lambda: zipped({f"{_INFO}/WHEEL": _WHEEL}), "METADATA"),
    "huge metadata": (
        lambda: zipped({**_GOOD, f"{_INFO}/METADATA": _METADATA + "x" * (1 << 20)}),
        "longer",
    ),
    "two of them": (lambda: zipped({**_GOOD, "a-1.dist-info/METADATA": ""}), "one .dist-info"),
    "name": (
        lambda: zipped({**_GOOD, f"{_INFO}/METADATA": _METADATA.replace("mine", "numpy")}),
        "Name",
    ),
    "version": (
        lambda: zipped({**_GOOD, f"{_INFO}/METADATA": _METADATA.replace("1.0", "1.1")}),
        "Version",
    ),
    "tags": (
        lambda: zipped({**_GOOD, f"{_INFO}/WHEEL": _WHEEL.replace("py3", "cp311")}),
        "tags",
    ),
    "address": (
        lambda: zipped(
            {**_GOOD, f"{_INFO}/METADATA": _METADATA + "Requires-Dist: x @ https://e.org/x.whl\n"}
        ),
        "URL",
    ),
    "requirement": (
        lambda: zipped({**_GOOD, f"{_INFO}/METADATA": _METADATA + "Requires-Dist: -e .\n"}),
        "cannot be read",
    ),
    "packing": (lambda: zipped(dict(_GOOD), method=zipfile.ZIP_LZMA), "compressed by a method"),
}


@pytest.mark.parametrize("what", _HOSTILE)
async def test_a_hostile_wheel_is_refused_and_nothing_of_it_stays(
    what: str, wheels: Wheels, caller: Caller, tmp_path: Path
) -> None:
    """B63, B69, B109: traversal, links, bombs, lies; read without being unpacked or run."""
    make_bytes, said = _HOSTILE[what]
    with pytest.raises(InvalidArgument, match=said) as refused:
        await upload(wheels, caller, make_bytes())
    assert "WHEEL_INVALID" == refused.value.reason
    assert [] == [*(tmp_path / "wheels" / str(caller.tenant_id)).iterdir()]


@pytest.mark.parametrize("name", ["mine.whl", "mine-1.0.whl", "..-1.0-py3-none-any.whl"])
async def test_a_file_name_that_is_no_wheels_is_refused(
    name: str, wheels: Wheels, caller: Caller
) -> None:
    with pytest.raises(InvalidArgument):
        await upload(wheels, caller, zipped(dict(_GOOD)), name)


async def test_rules_hold_for_what_others_need_too(
    make: Make, api_pool: Pool, caller: Caller, interpreter: Interpreter
) -> None:
    environments = make()
    await build(environments, "user", caller, interpreter.version)
    await set_rules(api_pool, caller, PackageRules(denied=["Mine"]), etag="", key=None)
    with pytest.raises(InvalidArgument, match=r"mine 9\.0") as refused:
        await environments.resolve(["user"], interpreter.version, caller.tenant_id)
    assert "PACKAGE_REFUSED" == refused.value.reason
    await set_rules(api_pool, caller, PackageRules(allowed=["old<2"]), etag="1", key=None)
    await environments.resolve(["old==1.0"], interpreter.version, caller.tenant_id)
    with pytest.raises(InvalidArgument, match=r"old 2\.0"):
        await environments.resolve(["old"], interpreter.version, caller.tenant_id)


async def test_rules_hold_for_environments_that_were_built_before_them(
    make: Make, api_pool: Pool, caller: Caller, interpreter: Interpreter
) -> None:
    await build(make(), "user", caller, interpreter.version)
    environments = make()
    lock = await environments.resolve(["user"], interpreter.version, caller.tenant_id)
    await set_rules(api_pool, caller, PackageRules(denied=["mine"]), etag="0", key=None)
    key = environments.key_of(
        tenant_id=caller.tenant_id, python_version=interpreter.version, digest=lock.digest
    )
    with pytest.raises(EnvironmentFailed, match="mine") as failed:
        await environments.ensure(
            key, lock.text, lock.digest, interpreter.version, caller.tenant_id, lambda *_: None
        )
    assert not failed.value.retryable


async def test_the_deployments_rules_hold_for_every_tenant(
    make: Make, caller: Caller, interpreter: Interpreter
) -> None:
    environments = make(PackageRules(denied=["old>=2"]))
    with pytest.raises(InvalidArgument, match="old"):
        await environments.resolve(["old>1"], interpreter.version, caller.tenant_id)


@pytest.fixture
def young_index(tmp_path: Path, index: Path) -> Iterator[str]:
    """An index that tells when it got what: version 2.0 an hour ago."""
    moments = {"1.0": timedelta(days=300), "2.0": timedelta(hours=1)}

    class Simple(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.strip("/").rpartition("/")[2]
            if name.endswith(".whl"):
                body, kind = (index / name).read_bytes(), "application/octet-stream"
            else:
                files = [
                    {
                        "filename": path.name,
                        "url": f"/{path.name}",
                        "hashes": {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
                        "upload-time": (datetime.now(UTC) - moments[path.name.split("-")[1]])
                        .replace(tzinfo=None)
                        .isoformat()
                        + "Z",
                    }
                    for path in index.glob(f"{name}-*")
                ]
                found = {"meta": {"api-version": "1.1"}, "name": name, "files": files}
                body = json.dumps(found).encode()
                kind = "application/vnd.pypi.simple.v1+json"
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.send_error(405)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Simple) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/simple"
        server.shutdown()
        thread.join()


async def test_a_release_counts_once_it_is_old_enough(
    make: Make, young_index: str, api_pool: Pool, caller: Caller, interpreter: Interpreter
) -> None:
    uv = Uv(env={"UV_DEFAULT_INDEX": young_index}, bubblewrap=find_bubblewrap())
    environments = make(uv=uv)
    lock = await environments.resolve(["old"], interpreter.version, caller.tenant_id)
    assert lock.text.startswith("old==2.0 ")
    rules = PackageRules(release_age_days_min=7)
    await set_rules(api_pool, caller, rules, etag="", key=None)
    lock = await environments.resolve(["old"], interpreter.version, caller.tenant_id)
    assert lock.text.startswith("old==1.0 ")


async def test_an_environment_says_what_it_consists_of(
    make: Make, caller: Caller, interpreter: Interpreter, database: Database
) -> None:
    await build(make(), "user", caller, interpreter.version)
    with database.connect() as sql:
        [(bom, number, size)] = sql.execute(
            "SELECT bom, package_count, size_bytes FROM environments"
        ).fetchall()
    assert ("CycloneDX", "1.6") == (bom["bomFormat"], bom["specVersion"])
    assert {"python", "mine", "user"} == {each["name"] for each in bom["components"]}
    needs = {each["ref"]: each.get("dependsOn", []) for each in bom["dependencies"]}
    assert ["pkg:pypi/mine@9.0"] == needs["pkg:pypi/user@1.0"]
    [mine] = [each for each in bom["components"] if each["name"] == "mine"]
    assert "SHA-256" == mine["externalReferences"][0]["hashes"][0]["alg"]
    assert 2 == number
    assert size > 0


def test_uploads_that_never_came_to_a_row_are_swept_in_time(tmp_path: Path) -> None:
    """CP11."""
    store = WheelStore(tmp_path)
    tenant, known, lost, fresh = (UUID(int=at) for at in range(1, 5))
    folder = tmp_path / str(tenant)
    folder.mkdir()
    for name in (str(known), str(lost), ".half"):
        (folder / name).touch()
        os.utime(folder / name, (1, 1))
    (folder / str(fresh)).touch()
    assert [tenant] == store.tenants()
    assert 2 == store.sweep(tenant, {known})
    assert {str(known), str(fresh)} == {each.name for each in folder.iterdir()}
