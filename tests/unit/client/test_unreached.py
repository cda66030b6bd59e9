"""A service that is not reached is told in a sentence that says what to do."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from qflow import unreached
from qflow.client.client import Client
from qflow.client.contexts import Context, Tls
from qflow.errors import UnavailableError, UnimplementedError
from qflow.exceptions import ConfigurationError

pytestmark = pytest.mark.asyncio

Keys = tuple[ec.EllipticCurvePrivateKey, x509.Certificate]


def certificate(
    name: str, authority: Keys | None = None, *, days: Sequence[int] = (-30, 30)
) -> Keys:
    """Make a certificate for a name, of an authority or, without one, an authority itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    begins, ends = (datetime.now(UTC) + timedelta(days=each) for each in days)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority[1].subject if authority else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=not authority, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    )
    return key, builder.sign(authority[0] if authority else key, hashes.SHA256())


def pem(keys: Keys) -> tuple[bytes, bytes]:
    encoding = serialization.Encoding.PEM
    key = keys[0].private_bytes(
        encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return key, keys[1].public_bytes(encoding)


@asynccontextmanager
async def server(keys: Keys | None, *, asks_callers: bool = False) -> AsyncIterator[str]:
    """Serve nothing at all on localhost, with TLS where there are keys."""
    made = grpc.aio.server()
    if keys is None:
        port = made.add_insecure_port("localhost:0")
    else:
        callers = pem(keys)[1] if asks_callers else None
        credentials = grpc.ssl_server_credentials([pem(keys)], callers, asks_callers)
        port = made.add_secure_port("localhost:0", credentials)
    await made.start()
    try:
        yield f"localhost:{port}"
    finally:
        await made.stop(None)


async def told(address: str, tls: Tls | None = None) -> str:
    """Call, and give what the failure says."""
    context = Context(
        registry=address, orchestrator=address, runner=address, telemetry=address, tls=tls
    )
    async with Client(context) as client:
        with pytest.raises(UnavailableError) as failed:
            await client.caller()
    return str(failed.value)


@pytest.mark.parametrize(
    ("name", "days", "trusted", "asks_callers", "said"),
    [
        ("localhost", (-30, 30), False, False, "an authority that is not trusted here"),
        ("elsewhere", (-30, 30), True, False, "its certificate is not for localhost"),
        ("localhost", (-30, -1), True, False, "its certificate has expired"),
        ("localhost", (1, 30), True, False, "its certificate is not valid yet"),
        ("localhost", (-30, 30), True, True, "it asks for a certificate of the caller"),
    ],
)
async def test_a_certificate_that_is_not_believed_is_told_with_the_way_out(
    name: str,
    days: tuple[int, int],
    trusted: bool,  # noqa: FBT001  # a case of the table
    asks_callers: bool,  # noqa: FBT001  # a case of the table
    said: str,
    tmp_path: Path,
) -> None:
    authority = certificate("authority")
    believed = authority if trusted else certificate("another")
    (tmp_path / "ca.pem").write_bytes(pem(believed)[1])
    keys = certificate(name, authority, days=days)
    async with server(keys, asks_callers=asks_callers) as address:
        message = await told(address, Tls(ca_file=str(tmp_path / "ca.pem")))
    assert message.startswith(f"no Qflow answers at {address}: ")
    assert said in message
    assert "SSL_ERROR" not in message


async def test_tls_that_is_spoken_on_one_side_alone_is_told(tmp_path: Path) -> None:
    keys = certificate("localhost")
    (tmp_path / "ca.pem").write_bytes(pem(keys)[1])
    async with server(None) as address:
        assert "it speaks plain text" in await told(address, Tls(ca_file=str(tmp_path / "ca.pem")))
    async with server(keys) as address:
        assert "perhaps it speaks TLS" in await told(address)


async def test_an_address_where_nothing_listens_or_that_is_nowhere_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    assert "nothing listens there" in await told(f"127.0.0.1:{port}")
    assert "the name nowhere.invalid " in await told("nowhere.invalid:7101")


async def test_a_file_that_holds_no_certificate_is_told_before_anything_is_sent(
    tmp_path: Path,
) -> None:
    (tmp_path / "ca.pem").write_text("hello")
    with pytest.raises(ConfigurationError, match=r"ca\.pem holds no certificate"):
        await told("localhost:1", Tls(ca_file=str(tmp_path / "ca.pem")))


async def test_a_server_that_does_not_know_the_call_is_older() -> None:
    async with server(None) as address:
        context = Context(registry=address, orchestrator=address, runner=address, telemetry=address)
        async with Client(context) as client:
            with pytest.raises(UnimplementedError, match="it is older than this client"):
                await client.caller()


async def test_words_that_nobody_knows_stand_as_they_came() -> None:
    assert "no Qflow answers at a:1: strange" == unreached.sentence(
        "a:1", "strange", encrypted=True
    )
