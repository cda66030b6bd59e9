"""Private package indexes: asked with a tenant's secret, which is seen nowhere else."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import http.server
import ssl
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from services.kit.caller import Caller
from services.kit.errors import (
    Conflict,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    QflowError,
    ResourceExhausted,
)
from services.kit.pg import Pool, open_pool
from services.kit.root_keys import LocalKeys
from services.runner.domain.package_rules import NO_RULES
from services.runner.gateways.sandbox.bubblewrap import BubblewrapHost, find_bubblewrap
from services.runner.gateways.sandbox.port import Interpreter
from services.runner.gateways.uv import Uv
from services.runner.gateways.wheel_store import WheelStore
from services.runner.usecases import secrets as secret_cases
from services.runner.usecases.environment_room import Room, RoomLimits
from services.runner.usecases.environments import EnvironmentFailed, Environments
from services.runner.usecases.granted_secrets import GrantedSecrets
from services.runner.usecases.package_indexes import (
    PackageIndexes,
    delete_index,
    list_indexes,
    set_index,
)
from services.runner.usecases.secrets import Secrets
from services.runner.usecases.tenant_packages import TenantPackages
from services.standalone.certificates import ensure
from services.standalone.tls_files import AUTHORITY, certificate_of, key_of
from tests import factories
from tests.integration.runner.test_own_packages import build, caller_of
from tests.integration.runner.wheels import make_wheel
from tests.support.database import Database

CANARY = "canary-91ab-of-an-index"
_KEYS = LocalKeys.parse("k1:" + base64.b64encode(b"1" * 32).decode(), setting="test")


@dataclass
class Index:
    """A private index over TLS that lets in who says the password."""

    port: int
    certificate: Path
    password: str = CANARY
    asked: list[tuple[str, str]] = field(default_factory=list)  # path, and what was sent for it

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}/simple/"

    @property
    def host(self) -> str:
        return f"localhost:{self.port}"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    folder, certificates = tmp_path / "private", tmp_path / "certificates"
    make_wheel(folder, "mine", "1.0", files={"mine.py": "WHOSE = 'the private index'\n"})
    ensure(certificates, ["localhost"])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    index = Index(server.server_address[1], certificates / AUTHORITY)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sent = self.headers.get("authorization", "")
            index.asked.append((self.path, sent))
            good = base64.b64encode(f"reader:{index.password}".encode()).decode()
            if sent != f"Basic {good}":
                self.answer(401, b"", ("WWW-Authenticate", "Basic"))
            elif self.path == "/simple/mine/":
                self.answer(200, _page(folder), ("Content-Type", "text/html"))
            elif (wheel := folder / self.path.rpartition("/")[2]).is_file():
                self.answer(200, wheel.read_bytes(), ("Content-Type", "application/zip"))
            else:
                self.answer(404, b"")

        def do_HEAD(self) -> None:
            self.do_GET()

        def answer(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
            self.send_response(status)
            for name, value in (*headers, ("Content-Length", str(len(body)))):
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server.RequestHandlerClass = Handler
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate_of(certificates, "runner"), key_of(certificates, "runner"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield index
    server.shutdown()
    server.server_close()


def _page(folder: Path) -> bytes:
    links = (
        f'<a href="/files/{each.name}#sha256={hashlib.sha256(each.read_bytes()).hexdigest()}">'
        f"{each.name}</a>"
        for each in folder.iterdir()
    )
    return f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode()


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


@pytest.fixture
def keeper(api_pool: Pool, engine_pool: Pool) -> Secrets:
    return Secrets(api_pool, _KEYS, GrantedSecrets(engine_pool, _KEYS))


@pytest.fixture
def indexes(api_pool: Pool, index: Index) -> PackageIndexes:
    return PackageIndexes(api_pool, (index.host,))


Make = Callable[..., Environments]


@pytest.fixture
def make(
    tmp_path: Path,
    index: Index,
    engine_pool: Pool,
    interpreters: dict[str, Interpreter],
    sandbox_host: BubblewrapHost,
) -> Make:
    def making(*, trusted: tuple[str, ...] = (index.host,)) -> Environments:
        root = tmp_path / "environments"
        # No other index answers: whatever is found is found in the tenant's own.
        env = {
            "SSL_CERT_FILE": str(index.certificate),
            "UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple",
            "UV_HTTP_RETRIES": "0",
        }
        return Environments(
            root=root,
            uv=Uv(env=env, bubblewrap=find_bubblewrap(), trusted=trusted),
            host=sandbox_host,
            interpreters=interpreters,
            pool=engine_pool,
            room=Room(root, engine_pool, RoomLimits(bytes_max=1 << 40, free_bytes_min=0)),
            packages=TenantPackages(
                engine_pool,
                WheelStore(tmp_path / "wheels"),
                root=root,
                deployment=NO_RULES,
                keys=_KEYS,
                trusted=trusted,
            ),
            incarnation=uuid.uuid4,
        )

    return making


async def name_it(
    keeper: Secrets, indexes: PackageIndexes, caller: Caller, index: Index, value: str = CANARY
) -> None:
    await secret_cases.set_secret(keeper, caller, "INDEX", value, description="")
    await set_index(indexes, caller, "corp", url=index.url, username="reader", secret_name="INDEX")


def everything_in(database: Database) -> str:
    with database.connect() as sql:
        tables = sql.execute(
            "SELECT relname FROM pg_class WHERE relkind = 'r'"
            " AND relnamespace = 'public'::regnamespace"
        ).fetchall()
        return "".join(
            str(row)
            for (table,) in tables
            for row in sql.execute(f"SELECT t::text FROM {table} t".encode()).fetchall()
        )


def everything_below(folder: Path) -> bytes:
    return b"".join(each.read_bytes() for each in folder.rglob("*") if each.is_file())


async def test_an_environment_is_built_from_a_private_index_and_its_secret_is_nowhere(
    make: Make,
    keeper: Secrets,
    indexes: PackageIndexes,
    caller: Caller,
    index: Index,
    interpreter: Interpreter,
    database: Database,
) -> None:
    """I37: not in the lock, the rows, the cache, the environment; and the file of indexes goes."""
    await name_it(keeper, indexes, caller, index)
    environments = make()
    lock = await environments.resolve(["mine"], interpreter.version, caller.tenant_id)
    folder = await build(environments, "mine", caller, interpreter.version)
    root = folder.parent.parent
    assert "WHOSE = 'the private index'\n" == (folder / "mine.py").read_text()
    assert {path for path, _ in index.asked} >= {
        "/simple/mine/",
        "/files/mine-1.0-py3-none-any.whl",
    }
    sent = base64.b64encode(f"reader:{CANARY}".encode()).decode()
    assert {f"Basic {sent}"} == {said for _, said in index.asked}
    found = everything_in(database)
    assert "mine" in lock.text
    for secret in (CANARY, sent, base64.b64encode(CANARY.encode()).decode()):
        assert secret not in lock.text + found
        assert secret.encode() not in everything_below(root)
    assert [] == [*root.rglob("*.toml")]


async def test_another_tenants_builds_never_ask_it(
    make: Make,
    keeper: Secrets,
    indexes: PackageIndexes,
    caller: Caller,
    index: Index,
    interpreter: Interpreter,
    database: Database,
) -> None:
    """X14, X29: though the lock is the same, and what it names was built here already."""
    await name_it(keeper, indexes, caller, index)
    environments = make()
    lock = await environments.resolve(["mine"], interpreter.version, caller.tenant_id)
    await build(environments, "mine", caller, interpreter.version)
    with database.connect() as sql:
        other = caller_of(factories.user(sql))
    index.asked.clear()
    with pytest.raises(QflowError):
        await environments.resolve(["mine"], interpreter.version, other.tenant_id)
    key = environments.key_of(
        tenant_id=other.tenant_id, python_version=interpreter.version, digest=lock.digest
    )
    with pytest.raises(EnvironmentFailed):
        await environments.ensure(
            key, lock.text, lock.digest, interpreter.version, other.tenant_id, lambda *_: None
        )
    await environments.settle()
    assert [] == index.asked
    assert [] == await list_indexes(indexes, other)
    with pytest.raises(NotFound):
        await delete_index(indexes, other, "corp")
    with pytest.raises(NotFound):  # nor is the secret another's to send
        await set_index(
            indexes, other, "corp", url=index.url, username="reader", secret_name="INDEX"
        )


async def test_a_wrong_secret_is_told_plainly_and_a_new_version_mends_it(
    make: Make,
    keeper: Secrets,
    indexes: PackageIndexes,
    caller: Caller,
    index: Index,
    interpreter: Interpreter,
) -> None:
    """B94: it is not tried again by itself, since it is not the index that is down."""
    await name_it(keeper, indexes, caller, index, "wrong-canary-77")
    environments = make()
    with pytest.raises(FailedPrecondition) as refused:
        await environments.resolve(["mine"], interpreter.version, caller.tenant_id)
    assert "INDEX_REFUSES" == refused.value.reason
    assert "corp" in str(refused.value)
    assert "wrong-canary-77" not in str(refused.value)
    await secret_cases.set_secret(keeper, caller, "INDEX", CANARY, description="")
    await environments.resolve(["mine"], interpreter.version, caller.tenant_id)


async def test_a_private_address_is_called_only_where_the_deployment_says_so(
    make: Make,
    keeper: Secrets,
    indexes: PackageIndexes,
    caller: Caller,
    index: Index,
    interpreter: Interpreter,
) -> None:
    """X27: refused when it is set, when it is opened, and where it is called."""
    await name_it(keeper, indexes, caller, index)
    strict = dataclasses.replace(indexes, trusted=())
    for url in (
        "http://example.com/simple/",
        "https://127.0.0.1/simple/",
        "https://169.254.169.254/simple/",
        "https://[::1]/simple/",
        "https://2130706433/simple/",
        "https://user:password@example.com/simple/",
        "file:///etc/passwd",
    ):
        with pytest.raises(InvalidArgument) as refused:
            await set_index(strict, caller, "other", url=url, username="", secret_name="")
        assert "INDEX_URL_REFUSED" == refused.value.reason, url
    # A name is a name: what it stands for is seen by who calls it, each time. Here it is the proxy.
    await set_index(strict, caller, "corp", url=index.url, username="reader", secret_name="INDEX")
    with pytest.raises(QflowError):
        await make(trusted=()).resolve(["mine"], interpreter.version, caller.tenant_id)
    assert [] == index.asked


async def test_indexes_are_changed_by_etag_and_keep_their_secret_from_going(
    keeper: Secrets, indexes: PackageIndexes, caller: Caller, index: Index
) -> None:
    await name_it(keeper, indexes, caller, index)
    [found] = await list_indexes(indexes, caller)
    assert ("corp", index.url, "reader", "INDEX") == (
        found.name,
        found.url,
        found.username,
        found.secret_name,
    )
    with pytest.raises(FailedPrecondition) as refused:
        await secret_cases.delete_secret(keeper, caller, "INDEX")
    assert "SECRET_IN_USE" == refused.value.reason
    with pytest.raises(Conflict):
        await delete_index(indexes, caller, "corp", etag="1-1")
    with pytest.raises(InvalidArgument):
        await set_index(indexes, caller, "corp", url=index.url, username="reader", secret_name="")
    await delete_index(indexes, caller, "corp", etag=found.etag)
    await secret_cases.delete_secret(keeper, caller, "INDEX")
    for at in range(10):
        await set_index(indexes, caller, f"n{at}", url=index.url, username="", secret_name="")
    with pytest.raises(ResourceExhausted):
        await set_index(indexes, caller, "more", url=index.url, username="", secret_name="")


async def test_a_member_who_does_not_lead_the_team_names_no_index(
    indexes: PackageIndexes, caller: Caller, index: Index
) -> None:
    """X17: whoever names an address is sent the secret."""
    member = dataclasses.replace(caller, tenant_id=uuid.uuid4(), team_role="user")
    with pytest.raises(PermissionDenied):
        await set_index(indexes, member, "corp", url=index.url, username="", secret_name="")
