"""TLS for users, mutual TLS between services, and certificates that change under way."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.kit.env import EnvError
from services.kit.ids import token_sha256
from services.kit.rpc.channel import open_channel
from services.kit.rpc.listener import Listener
from services.kit.rpc.server import BoundServer, open_server
from services.kit.rpc.tls import KeyPair, ServerTls, Trust
from services.kit.run import listener
from services.standalone.certificates import ensure
from tests.integration.kit.conftest import USER, Service, _servicer
from tests.integration.kit.test_kit_wire import reason

LONG_AGO = datetime.now(UTC) - timedelta(days=30)
RUNNER = "qf_runner"


@dataclass(frozen=True)
class Files:
    """A folder of certificates of one authority."""

    folder: Path

    @property
    def authority(self) -> Path:
        return self.folder / "authority.crt"

    def pair(self, service: str) -> KeyPair:
        return KeyPair(self.folder / f"{service}.crt", self.folder / f"{service}.key")

    def trust(self, service: str | None = None) -> Trust:
        pair = None if service is None else self.pair(service)
        return Trust(authorities=self.authority, pair=pair)

    def text(self, service: str) -> str:
        return self.pair(service).certificate.read_text()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    ensure(tmp_path / "tls", [])
    return Files(tmp_path / "tls")


@pytest.fixture
def others(tmp_path: Path) -> Files:
    """Certificates for the same names, of an authority that nobody here believes."""
    ensure(tmp_path / "others", [])
    return Files(tmp_path / "others")


Secured = Callable[..., Awaitable[BoundServer]]


@pytest.fixture
async def secured(service: Service) -> AsyncIterator[Secured]:
    """Start the test service behind TLS; by default as an orchestrator that services attach to."""
    row = (token_sha256(RUNNER), "runner", "service", ["runner"])
    await service.pool.execute(
        "INSERT INTO identities (digest, role, kind, scopes) VALUES ($1, $2, $3, $4)", *row
    )
    started = []

    async def start(tls: ServerTls, *, prove: bool = True) -> BoundServer:
        add = service.stubs.grpc.add_KitTestServiceServicer_to_server
        server = await open_server(
            Listener(address="localhost:0", public=False, tls=tls, services_prove=prove),
            [(add, _servicer(service.stubs, service.behaviors))],
            authenticator=service.authenticator,
            health_servicer=service.health,
        )
        await server.start()
        started.append(server)
        return server

    yield start
    for each in started:
        await each.stop(0)


async def say(service: Service, channel: grpc.aio.Channel, *, method: str = "Say") -> str:
    stub = service.stubs.grpc.KitTestServiceStub(channel)
    return str((await getattr(stub, method)(service.pb.Note(text="x"), timeout=5)).text)


async def not_connected(service: Service, channel: grpc.aio.Channel) -> None:
    """The handshake fails: nothing of the call reaches the servicer."""
    seen = len(service.behaviors.seen)
    async with channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await say(service, channel)
    assert grpc.StatusCode.UNAVAILABLE == caught.value.code()
    assert len(service.behaviors.seen) == seen


async def test_services_that_prove_who_they_are_are_let_in(
    service: Service, secured: Secured, files: Files
) -> None:
    server = await secured(ServerTls(files.pair("orchestrator"), clients=files.authority))
    async with open_channel(
        server.address, RUNNER, trust=files.trust("runner"), peer="orchestrator"
    ) as channel:
        assert "x" == await say(service, channel, method="Peer")


async def test_the_token_of_one_service_is_worth_nothing_with_the_certificate_of_another(
    service: Service, secured: Secured, files: Files
) -> None:
    """X9, X46: a stolen token alone opens nothing."""
    server = await secured(ServerTls(files.pair("orchestrator"), clients=files.authority))
    async with open_channel(
        server.address, RUNNER, trust=files.trust("telemetry"), peer="orchestrator"
    ) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await say(service, channel, method="Peer")
    assert grpc.StatusCode.UNAUTHENTICATED == caught.value.code()
    assert "SERVICE_NOT_PROVEN" == reason(caught.value)


async def test_where_users_are_served_a_services_token_is_not_believed(
    service: Service, secured: Secured, files: Files
) -> None:
    """X9: users show no certificates, so no service is proven there."""
    server = await secured(ServerTls(files.pair("orchestrator")))
    async with open_channel(server.address, RUNNER, trust=files.trust()) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await say(service, channel, method="Peer")
    assert "SERVICE_NOT_PROVEN" == reason(caught.value)
    async with open_channel(server.address, USER, trust=files.trust()) as channel:
        assert "x" == await say(service, channel)


async def test_a_client_without_a_certificate_is_not_spoken_to(
    service: Service, secured: Secured, files: Files
) -> None:
    """X48."""
    server = await secured(ServerTls(files.pair("orchestrator"), clients=files.authority))
    await not_connected(service, open_channel(server.address, USER, trust=files.trust()))
    await not_connected(service, open_channel(server.address, USER))


async def test_certificates_of_another_authority_are_believed_on_neither_side(
    service: Service, secured: Secured, files: Files, others: Files
) -> None:
    """X48."""
    server = await secured(ServerTls(files.pair("orchestrator"), clients=files.authority))
    impostor = Trust(authorities=files.authority, pair=others.pair("runner"))
    await not_connected(
        service, open_channel(server.address, USER, trust=impostor, peer="orchestrator")
    )
    deceived = Trust(authorities=others.authority, pair=files.pair("runner"))
    await not_connected(
        service, open_channel(server.address, USER, trust=deceived, peer="orchestrator")
    )


async def test_a_server_must_be_the_service_that_is_dialled(
    service: Service, secured: Secured, files: Files
) -> None:
    """X48: the right authority and the right host, but a runner in the orchestrator's place."""
    server = await secured(ServerTls(files.pair("runner"), clients=files.authority))
    await not_connected(
        service,
        open_channel(server.address, USER, trust=files.trust("runner"), peer="orchestrator"),
    )


async def test_users_believe_a_server_only_under_a_name_of_its_certificate(
    service: Service, secured: Secured, files: Files
) -> None:
    """X48."""
    server = await secured(ServerTls(files.pair("registry")))
    port = server.address.rpartition(":")[2]
    async with open_channel(f"localhost:{port}", USER, trust=files.trust()) as channel:
        assert "x" == await say(service, channel)
    # Of this machine as well, and in no certificate.
    await not_connected(service, open_channel(f"127.0.0.2:{port}", USER, trust=files.trust()))


async def test_an_expired_certificate_is_refused_by_whoever_sees_it(
    service: Service, secured: Secured, files: Files, tmp_path: Path
) -> None:
    """X48."""
    ensure(files.folder, [], now=LONG_AGO, renew=True)
    with pytest.raises(EnvError, match="expired at"):
        await secured(ServerTls(files.pair("orchestrator"), clients=files.authority))
    with pytest.raises(EnvError, match="expired at"):
        files.trust("runner").credentials()
    # What does not look at its own dates.
    old = [
        each.read_bytes() for each in (files.pair("runner").key, files.pair("runner").certificate)
    ]
    authority = files.authority.read_bytes()
    careless = grpc.aio.server()
    port = careless.add_secure_port("localhost:0", grpc.ssl_server_credentials([(old[0], old[1])]))
    await careless.start()
    try:
        await not_connected(service, open_channel(f"localhost:{port}", USER, trust=files.trust()))
    finally:
        await careless.stop(0)
    ensure(files.folder, [])
    server = await secured(ServerTls(files.pair("orchestrator"), clients=files.authority))
    await not_connected(
        service,
        grpc.aio.secure_channel(
            server.address, grpc.ssl_channel_credentials(authority, old[0], old[1])
        ),
    )


async def test_renewed_certificates_are_shown_without_a_restart(
    service: Service, secured: Secured, files: Files
) -> None:
    server = await secured(ServerTls(files.pair("registry")))
    async with open_channel(server.address, USER, trust=files.trust()) as standing:
        assert "x" == await say(service, standing)
        before = files.text("registry")
        assert before == await shown(server)
        ensure(files.folder, [], renew=True)
        assert before != files.text("registry") == await shown(server)
        assert "x" == await say(service, standing)  # a connection that stands is left alone


async def test_while_key_and_certificate_do_not_fit_the_former_ones_are_shown(
    service: Service, secured: Secured, files: Files, others: Files
) -> None:
    server = await secured(ServerTls(files.pair("registry")))
    before = files.text("registry")
    files.pair("registry").certificate.write_text(others.text("registry"))
    assert before == await shown(server)
    files.pair("registry").key.write_bytes(others.pair("registry").key.read_bytes())
    assert others.text("registry") == await shown(server)


async def test_a_channel_that_must_connect_again_shows_the_renewed_certificate(
    service: Service, secured: Secured, files: Files
) -> None:
    """One that was made long ago would show an expired one for ever."""
    tls = ServerTls(files.pair("orchestrator"), clients=files.authority)
    server = await secured(tls)
    seen: list[bytes] = []

    async def look(request: Any, context: Any) -> Any:
        seen.extend(context.auth_context()["x509_pem_cert"])
        return request

    service.behaviors.unary = look
    async with open_channel(
        server.address, RUNNER, trust=files.trust("runner"), peer="orchestrator"
    ) as channel:
        await say(service, channel, method="Peer")
        first = files.text("runner")
        ensure(files.folder, [], renew=True)
        await say(service, channel, method="Peer")
        await server.stop(0)
        while channel.get_state() is grpc.ChannelConnectivity.READY:
            await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
        again = await open_server(
            Listener(address=server.address, public=False, tls=tls, services_prove=True),
            [
                (
                    service.stubs.grpc.add_KitTestServiceServicer_to_server,
                    _servicer(service.stubs, service.behaviors),
                )
            ],
            authenticator=service.authenticator,
            health_servicer=service.health,
        )
        await again.start()
        stub = service.stubs.grpc.KitTestServiceStub(channel)
        await stub.Peer(service.pb.Note(text="x"), timeout=10, wait_for_ready=True)
        await again.stop(0)
    assert [first, first, files.text("runner")] == [each.decode() for each in seen]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda files: files.pair("registry").key.chmod(0o604), "every user may read"),
        (lambda files: files.pair("registry").key.unlink(), "cannot be read"),
        (lambda files: files.pair("registry").key.write_text("?"), "not a certificate and its key"),
    ],
)
def test_a_key_that_is_no_use_stops_the_start_with_its_name(
    files: Files, spoil: Callable[[Files], Any], said: str
) -> None:
    spoil(files)
    with pytest.raises(EnvError, match=said) as caught:
        ServerTls(files.pair("registry")).credentials()
    assert "registry.key" in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"QFLOW_SERVICE_KEY_FILE": "/x"}, "go together"),
        (
            {"QFLOW_SERVICE_KEY_FILE": "/x", "QFLOW_SERVICE_CERTIFICATE_FILE": "/y"},
            "needs QFLOW_TLS_CA_FILE",
        ),
    ],
)
def test_half_an_identity_stops_the_start(setting: dict[str, str], said: str) -> None:
    with pytest.raises(EnvError, match=said):
        listener(setting, "orchestrator", "127.0.0.1:0", suffix="ATTACH_LISTEN")


def test_certificates_that_hold_for_a_while_are_left_alone(tmp_path: Path) -> None:
    folder, now = tmp_path / "tls", datetime.now(UTC)
    assert 4 == len(ensure(folder, ["a.example"], now=now))
    assert [] == ensure(folder, ["a.example"], now=now + timedelta(days=3))
    assert 4 == len(ensure(folder, ["a.example"], now=now + timedelta(days=4)))
    assert 4 == len(ensure(folder, ["b.example"], now=now + timedelta(days=4)))
    (folder / "runner.key").write_bytes((folder / "registry.key").read_bytes())
    assert ["runner"] == ensure(folder, ["b.example"], now=now + timedelta(days=4))
    assert {0o600} == {each.stat().st_mode & 0o777 for each in folder.iterdir()}
    assert 0o700 == folder.stat().st_mode & 0o777


async def shown(server: BoundServer) -> str:
    """The certificate that a new connection is shown."""
    host, _, port = server.address.rpartition(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    async with connected(host, int(port), context) as writer:
        raw = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return ssl.DER_cert_to_PEM_cert(raw)


@asynccontextmanager
async def connected(
    host: str, port: int, context: ssl.SSLContext
) -> AsyncIterator[asyncio.StreamWriter]:
    _, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        yield writer
    finally:
        writer.close()
