"""The way out: which hosts, which addresses, and nothing by another way of saying it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest

from services.runner.gateways.egress_proxy import Proxy, allows, is_public, parse_head

PUBLIC = "93.184.216.34"


class World:
    """A resolver, and an internet in which every address is one server of this test."""

    def __init__(self, names: Mapping[str, Sequence[str]]) -> None:
        self.names = {name: list(found) for name, found in names.items()}
        self.asked: list[str] = []
        self.connected: list[tuple[str, int]] = []
        self.heard: list[bytes] = []
        self.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
        self._port = 0

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        del port
        self.asked.append(host)
        if host not in self.names:
            raise OSError("no such name")
        return self.names[host]

    async def connect(
        self, address: str, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.connected.append((address, port))
        return await asyncio.open_connection("127.0.0.1", self._port)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heard.append(await reader.read(65536))
        writer.write(self.answer)
        await writer.drain()
        writer.close()

    @asynccontextmanager
    async def proxy(self, *rules: Sequence[str], trusted: Sequence[str] = ()) -> AsyncIterator[int]:
        """Give the port of a proxy with these rules."""
        upstream = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._port = upstream.sockets[0].getsockname()[1]
        proxy = Proxy(rules, trusted=trusted, resolve=self.resolve, connect=self.connect)
        server = await asyncio.start_server(proxy.answer, "127.0.0.1", 0, limit=16384)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            upstream.close()


async def say(port: int, text: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(text)
    await writer.drain()
    writer.write_eof()
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.close()
    return answer


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


async def test_private_addresses_are_those_of_hosts_and_ports_that_are_trusted_alone() -> None:
    """X27: what a deployment says of one host says nothing of another."""
    world = World({"pypi.corp": ["10.0.0.7"], "other.corp": ["10.0.0.8"]})
    async with world.proxy(["*", "pypi.corp:8443"], trusted=["pypi.corp:8443"]) as port:
        assert 200 == status(await say(port, b"CONNECT pypi.corp:8443 HTTP/1.1\r\n\r\n"))
        for refused in (b"pypi.corp:443", b"other.corp:443", b"other.corp:8443"):
            answer = await say(port, b"CONNECT " + refused + b" HTTP/1.1\r\n\r\n")
            assert 403 == status(answer), refused
    assert [("10.0.0.7", 8443)] == world.connected


async def test_a_tunnel_goes_to_the_address_that_was_checked() -> None:
    world = World({"api.example.com": [PUBLIC]})
    async with world.proxy(["*.example.com"]) as port:
        said = b"CONNECT api.example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n\x16secret"
        answer = await say(port, said)
    assert answer.startswith(b"HTTP/1.1 200 Connection established\r\n\r\n")
    assert answer.endswith(b"hi")
    assert [(PUBLIC, 443)] == world.connected
    assert [b"\x16secret"] == world.heard


async def test_a_plain_request_says_the_host_that_was_checked_and_only_its_own_body() -> None:
    """A second request on the connection, for another host, is not passed on."""
    world = World({"example.com": [PUBLIC]})
    said = (
        b"POST http://example.com/a?b=1 HTTP/1.1\r\nHost: internal.corp\r\nContent-Length: 3\r\n"
        b"Proxy-Authorization: x\r\nX-Kept: yes\r\n\r\nabc"
        b"GET http://internal.corp/ HTTP/1.1\r\nHost: internal.corp\r\n\r\n"
    )
    async with world.proxy(["example.com"]) as port:
        assert (await say(port, said)).endswith(b"hi")
    [heard] = world.heard
    assert heard.startswith(b"POST /a?b=1 HTTP/1.1\r\nHost: example.com\r\n")
    assert b"X-Kept: yes" in heard
    assert b"Proxy-" not in heard
    assert b"internal.corp" not in heard
    assert [(PUBLIC, 80)] == world.connected


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.3.4", "192.168.1.1"),
        *("169.254.169.254", "100.64.0.1", "198.18.0.1", "224.0.0.1", "240.0.0.1"),
        *("255.255.255.255", "192.0.2.1", "192.88.99.1"),
        *("::1", "::", "fe80::1", "fd00::1", "ff02::1", "fec0::1"),
        *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1"),
        *("2002:7f00:1::", "2001:db8::1", "fd00:ec2::254", "64:ff9b:1::a9fe:a9fe"),
    ],
)
async def test_a_name_that_stands_for_no_public_address_is_refused(address: str) -> None:
    """B104: metadata, this machine, private nets, and IPv6 that stands for them."""
    world = World({"evil.example.com": [address]})
    async with world.proxy(["*"]) as port:
        answer = await say(port, b"CONNECT evil.example.com:443 HTTP/1.1\r\n\r\n")
    assert 403 == status(answer)
    assert [] == world.connected
    assert not is_public(address)


@pytest.mark.parametrize(
    "written",
    [
        *("127.0.0.1:443", "169.254.169.254:80", "2130706433:80", "0x7f.1:80", "0177.0.0.1:80"),
        *("127.1:80", "[::1]:80", "[::ffff:127.0.0.1]:80", "localhost:80", "LOCALHOST.:80"),
    ],
)
async def test_an_address_written_in_any_way_is_checked_as_what_it_is(written: str) -> None:
    """B104: the machine's resolver reads numbers in old notations, and so they are checked."""
    host = written.rpartition(":")[0].lower().removesuffix(".")
    world = World({host: ["127.0.0.1"]})
    async with world.proxy(["*"]) as port:
        answer = await say(port, f"CONNECT {written} HTTP/1.1\r\n\r\n".encode())
        plain = await say(port, f"GET http://{written}/ HTTP/1.1\r\n\r\n".encode())
    assert status(answer) in {400, 403}
    assert status(plain) in {400, 403}
    assert [] == world.connected


async def test_a_name_is_asked_once_and_only_what_was_checked_is_dialled() -> None:
    """DNS rebinding: what comes after the check is never looked at."""
    world = World({"rebind.example.com": ["127.0.0.1", PUBLIC, "169.254.169.254"]})
    async with world.proxy(["*"]) as port:
        answer = await say(port, b"CONNECT rebind.example.com:443 HTTP/1.1\r\n\r\n")
    assert 200 == status(answer)
    assert ["rebind.example.com"] == world.asked
    assert [(PUBLIC, 443)] == world.connected


async def test_a_redirect_is_a_request_of_its_own_and_refused_like_any() -> None:
    world = World({"example.com": [PUBLIC], "internal": ["10.0.0.1"]})
    world.answer = b"HTTP/1.1 302 Found\r\nLocation: http://internal/\r\nContent-Length: 0\r\n\r\n"
    async with world.proxy(["*"]) as port:
        answer = await say(port, b"GET http://example.com/ HTTP/1.1\r\n\r\n")
        assert 302 == status(answer)
        assert 403 == status(await say(port, b"GET http://internal/ HTTP/1.1\r\n\r\n"))
    assert [(PUBLIC, 80)] == world.connected


async def test_a_host_must_be_allowed_by_each_list() -> None:
    """The deployment's list bounds the node's; neither alone opens anything."""
    world = World({name: [PUBLIC] for name in ("a.example.com", "b.example.com", "example.org")})
    async with world.proxy(["*.example.com"], ["a.example.com", "example.org"]) as port:
        answers = {
            name: status(await say(port, f"CONNECT {name}:443 HTTP/1.1\r\n\r\n".encode()))
            for name in world.names
        }
    assert {"a.example.com": 200, "b.example.com": 403, "example.org": 403} == answers
    assert ["a.example.com"] == world.asked, "what is not allowed is not even looked up"


@pytest.mark.parametrize(
    "said",
    [
        b"hello\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET ftp://example.com/ HTTP/1.1\r\n\r\n",
        b"GET http://user:pass@example.com/ HTTP/1.1\r\n\r\n",
        b"GET http://example.com@internal/ HTTP/1.1\r\n\r\n",
        b"GET http://example.com\t/ HTTP/1.1\r\n\r\n",
        b"GET http://example.com/ HTTP/1.1\r\nA\r\n\r\n",
        b"GET http://example.com/ HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET http://example.com/ HTTP/1.1\r\n X: folded\r\n\r\n",
        b"GET http://example.com/ HTTP/1.1\r\nA: b\nHost: x\r\n\r\n",
        b"POST http://example.com/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST http://example.com/ HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"CONNECT example.com HTTP/1.1\r\n\r\n",
        b"CONNECT example.com:0 HTTP/1.1\r\n\r\n",
        b"CONNECT example.com:99999 HTTP/1.1\r\n\r\n",
        b"CONNECT example.com:443 HTTP/2\r\n\r\n",
        b"CONNECT exa\xffmple.com:443 HTTP/1.1\r\n\r\n",
        b"A" * 40_000 + b"\r\n\r\n",
    ],
)
async def test_what_can_be_read_in_two_ways_is_not_passed_on(said: bytes) -> None:
    world = World({"example.com": [PUBLIC]})
    async with world.proxy(["*"]) as port:
        answer = await say(port, said)
    assert status(answer) in {400, 411}, answer
    assert [] == world.connected


def test_patterns_name_hosts_and_ports() -> None:
    assert allows(["example.com"], "example.com", 443)
    assert allows(["example.com"], "example.com", 80)
    assert not allows(["example.com"], "example.com", 22)
    assert allows(["example.com:22"], "example.com", 22)
    assert not allows(["example.com:22"], "example.com", 443)
    assert not allows(["example.com"], "notexample.com", 443)
    assert not allows(["*.example.com"], "example.com", 443)
    assert not allows(["*.example.com"], "evilexample.com", 443)
    assert allows(["*.example.com"], "a.b.example.com", 443)
    assert allows(["*"], "anything.example", 443)
    assert not allows([], "example.com", 443)


def test_the_head_of_a_request_is_read_in_the_plain_form() -> None:
    head = b"GET http://example.com/ HTTP/1.1\r\nAccept:  */* \r\n\r\n"
    assert ("GET", "http://example.com/", "HTTP/1.1", [("Accept", "*/*")]) == parse_head(head)
