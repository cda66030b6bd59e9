"""What a sandbox reaches of the network, at every tier that holds it."""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from services.runner.domain.limits import Limits
from services.runner.domain.network import Network, Reach
from services.runner.gateways.egress import egress_for
from services.runner.gateways.egress_proxy import Proxy
from services.runner.gateways.sandbox.port import (
    Interpreter,
    Sandbox,
    SandboxDied,
    SandboxHost,
    SandboxSpec,
    ServeEgress,
)
from tests.integration.runner.conftest import Box, load_header

_GUARDED = ("sandbox", pytest.param("docker", marks=pytest.mark.docker))
_PUBLIC = "93.184.216.34"
# Tells how far it gets: by the proxy, and past it in every way that user code has.
_CODE = """
import os, socket, urllib.error, urllib.request

def ask(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return [answer.status, answer.read().decode()]
    except urllib.error.HTTPError as refused:
        return [refused.code, refused.read().decode()]
    except OSError as problem:
        return [0, type(problem).__name__]

def dial(family, kind, address):
    try:
        number = socket.IPPROTO_ICMP if kind == socket.SOCK_RAW and family == 2 else 0
        with socket.socket(family, kind, number) as one:
            one.settimeout(2)
            one.connect(address)
            one.send(b"x")
            return "open"
    except OSError as problem:
        return type(problem).__name__

def main(what, target):
    if what == "ask":
        return ask(target)
    families = {"v4": socket.AF_INET, "v6": socket.AF_INET6, "unix": socket.AF_UNIX}
    families |= {"vsock": 40, "netlink": 16, "packet": 17}
    kinds = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM, "raw": socket.SOCK_RAW}
    family, kind = what.split()
    address = target
    if family in ("v4", "v6"):
        address = (target, 80)
    elif family == "vsock":
        address = (2, 80)
    elif family == "netlink":
        address = (0, 0)
    elif family == "packet":
        address = ("lo", 0)
    elif target.startswith("@"):
        address = b"\\0" + target[1:].encode()
    return dial(families[family], kinds[kind], address)
"""
TEXT = {"t": "str"}


class Upstream:
    """Every host of the internet, as a sandbox sees it through a proxy of this process."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        del port
        return ["127.0.0.1"] if host.startswith("private") else [_PUBLIC]

    async def connect(
        self, address: str, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        assert (_PUBLIC, 80) == (address, port)
        mine, theirs = socket.socketpair()
        answering = asyncio.create_task(self._answer(theirs))
        answering.add_done_callback(lambda done: done.result())
        return await asyncio.open_connection(sock=mine)

    async def _answer(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection)
        head = await reader.readuntil(b"\r\n\r\n")
        self.asked.append(head.decode().split("Host: ")[1].split("\r\n")[0])
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        await writer.drain()
        writer.close()


def served_here(upstream: Upstream, rules: Sequence[Sequence[str]]) -> ServeEgress:
    """The proxy itself, with another internet behind it."""

    def serve(descriptor: int) -> Callable[[], None]:
        proxy = Proxy(rules, resolve=upstream.resolve, connect=upstream.connect)
        listener = socket.socket(fileno=descriptor)
        listener.setblocking(False)
        serving = asyncio.ensure_future(asyncio.start_server(proxy.answer, sock=listener))
        return lambda: serving.result().close()

    return serve


Begin = Callable[..., Awaitable[Box]]


@pytest.fixture
async def begin(host: SandboxHost, python: Interpreter) -> AsyncIterator[Begin]:
    begun: list[Sandbox] = []

    async def beginning(network: Network, egress: ServeEgress | None = None) -> Box:
        sandbox = await host.start(
            SandboxSpec(
                sandbox_id=uuid.uuid4(),
                python=python.executable,
                prefix=python.prefix,
                agent=python.agent,
                environment=None,
                limits=Limits(network=network),
                egress=egress,
            )
        )
        begun.append(sandbox)
        header = load_header(_CODE, {"what": TEXT, "target": TEXT})
        reply = await sandbox.request(header)
        assert "loaded" == reply.header["op"], reply.header
        return Box(sandbox)

    yield beginning
    for sandbox in begun:
        await sandbox.kill()


async def said(box: Box, what: str, target: str = "") -> Any:
    return await box.value(what=f'"{what}"', target=f'"{target}"')


@contextmanager
def listening() -> Iterator[int]:
    """A service of this machine."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("host", _GUARDED, indirect=True)
async def test_with_egress_allowed_hosts_are_reached_and_nothing_past_the_proxy(
    begin: Begin,
) -> None:
    """B104, X47: the proxy is the only way; the sandbox's own network ends at its loopback."""
    upstream = Upstream()
    rules = [["*"], ["ok.example.com", "private.example.com"]]
    box = await begin(Network(Reach.EGRESS, tuple(rules[1])), served_here(upstream, rules))
    assert [200, "hello"] == await said(box, "ask", "http://ok.example.com/x")
    assert ["ok.example.com"] == upstream.asked
    code, why = await said(box, "ask", "http://other.example.com/")
    assert (403, True) == (code, "not among the hosts" in why)
    code, why = await said(box, "ask", "http://private.example.com/")
    assert (403, True) == (code, "no public address" in why)
    assert 403 == (await said(box, "ask", "http://169.254.169.254/latest/meta-data"))[0]
    for what in ("v4 tcp", "v4 udp"):
        assert "open" != await said(box, what, "169.254.169.254"), what
        assert "open" != await said(box, what, _PUBLIC), what
    assert "open" != await said(box, "v6 tcp", "2606:4700:4700::1111")
    assert "open" != await said(box, "v6 tcp", "::ffff:169.254.169.254")
    for what in ("v4 raw", "packet raw", "vsock tcp", "netlink raw"):
        assert "PermissionError" == await said(box, what, "127.0.0.1"), what
    with socket.socket(socket.AF_UNIX) as abstract:
        name = f"qflow-test-{uuid.uuid4()}"
        abstract.bind(b"\0" + name.encode())
        abstract.listen()
        assert "open" != await said(box, "unix tcp", f"@{name}")
    with listening() as port:  # what listens on this machine is not on the sandbox's loopback
        assert 0 == (await said(box, "ask", f"http://127.0.0.1:{port}/"))[0]


@pytest.mark.parametrize("host", _GUARDED, indirect=True)
async def test_each_sandbox_has_its_own_list_and_no_way_to_anothers(begin: Begin) -> None:
    """Another tenant's allow list: its proxy listens in another network."""
    upstream = Upstream()
    one = await begin(Network(Reach.EGRESS), served_here(upstream, [["one.example.com"]]))
    two = await begin(Network(Reach.EGRESS), served_here(upstream, [["two.example.com"]]))
    assert 200 == (await said(one, "ask", "http://one.example.com/"))[0]
    assert 403 == (await said(two, "ask", "http://one.example.com/"))[0]
    assert 200 == (await said(two, "ask", "http://two.example.com/"))[0]
    assert ["one.example.com", "two.example.com"] == upstream.asked


@pytest.mark.parametrize("host", _GUARDED, indirect=True)
async def test_the_proxy_is_a_process_of_its_own_that_ends_with_the_sandbox(begin: Begin) -> None:
    before = proxies()
    box = await begin(Network(Reach.EGRESS), egress_for(["*"], Network(Reach.EGRESS)))
    code, why = await said(box, "ask", "http://127.0.0.2/")
    assert (403, True) == (code, "no public address" in why), why
    code, why = await said(box, "ask", "http://169.254.169.254/")
    assert (403, True) == (code, "no public address" in why), why
    [pid] = proxies() - before
    if os.geteuid() == 0:
        assert {65534} == users_of(pid)
    await box.sandbox.kill()
    assert before == proxies()


def proxies() -> set[int]:
    found = set()
    for name in os.listdir("/proc"):  # noqa: PTH208 - of names, not of paths
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:  # noqa: PTH123
                    line = file.read()
            except OSError:
                continue
            if b"egress_proxy.py" in line and parent_of(int(name)) == os.getpid():
                found.add(int(name))
    return found


def users_of(pid: int) -> set[int]:
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:  # noqa: PTH123
        [line] = [each for each in file if each.startswith("Uid:")]
    return set(map(int, line.split()[1:]))


def parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:  # noqa: PTH123
        return int(file.read().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("host", _GUARDED, indirect=True)
async def test_without_a_network_there_is_none(begin: Begin) -> None:
    box = await begin(Network(Reach.NONE))
    for what in ("v4 tcp", "v4 udp", "v6 tcp", "v4 raw"):
        assert "PermissionError" == await said(box, what, "127.0.0.1"), what


@pytest.mark.parametrize("host", ["process", *_GUARDED], indirect=True)
async def test_on_the_machines_network_its_services_are_reached(begin: Begin) -> None:
    box = await begin(Network(Reach.HOST))
    server = await asyncio.start_server(_greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert [200, "hello"] == await said(box, "ask", f"http://127.0.0.1:{port}/")
    server.close()


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
    await writer.drain()
    writer.close()


@pytest.mark.parametrize("host", ["landlock"], indirect=True)
async def test_a_tier_without_a_network_of_its_own_offers_none(
    host: SandboxHost, begin: Begin
) -> None:
    """T1 bars sockets whatever is asked for: nothing there could tell a proxy from the rest."""
    assert [] == list(host.networks)
    box = await begin(Network(Reach.HOST))
    assert "PermissionError" == await said(box, "v4 tcp", "127.0.0.1")


@pytest.mark.parametrize("host", _GUARDED, indirect=True)
async def test_where_nothing_serves_the_way_out_there_is_no_sandbox(begin: Begin) -> None:
    with pytest.raises(SandboxDied, match="no proxy"):
        await begin(Network(Reach.EGRESS))
