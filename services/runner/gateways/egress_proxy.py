"""The egress proxy of one sandbox, a separate program: `egress_proxy.py <listening socket>`.

An HTTP proxy for CONNECT and for plain requests with absolute URLs. The first line of stdin is JSON
with the allowed hosts, and with those that may have private addresses; the program ends when stdin
does. It only uses the standard library and runs without privileges: both sides of its connections
are untrusted.

A name is resolved only once, here: the address that is checked is the one that is connected to. A
redirect comes back as a new request. Other names served by an allowed host cannot be told apart:
the proxy does not look into encrypted streams.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 - loaded before the right to read it is dropped
import contextlib
import ipaddress
import json
import os
import re
import resource
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from encodings import idna  # noqa: F401 - as above
from urllib.parse import urlsplit

HEAD_BYTES_MAX = 16 * 1024
CONNECTIONS_MAX = 64
PORTS = (80, 443)
_NOBODY = 65534
_MEMORY_BYTES_MAX = 512 * 1024 * 1024
_HEAD_TIMEOUT_S = 10.0
_CONNECT_TIMEOUT_S = 10.0
_IDLE_TIMEOUT_S = 300.0
_PIECE_BYTES = 64 * 1024
_ADDRESSES_MAX = 4
_HOST = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*"
)
_METHOD = re.compile(r"[A-Z]{1,20}")
# Headers of the connection with the proxy, not of the request.
_HOP_BY_HOP = frozenset(
    (
        *("connection", "keep-alive", "proxy-connection", "proxy-authorization", "te"),
        *("proxy-authenticate", "trailer", "upgrade", "host"),
    )
)
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
# Parts of the global range that map to other addresses, or are not assigned to hosts.
_NOT_PUBLIC_V6 = tuple(
    ipaddress.IPv6Network(each)
    for each in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "2620:4f:8000::/48")
)
_RELAYS_OF_6TO4 = ipaddress.IPv4Network("192.88.99.0/24")

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
Connect = Callable[[str, int], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Refused(Exception):  # noqa: N818 - it becomes a response
    """The reason why a request is refused, with the HTTP status for it."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def is_public(text: str) -> bool:
    """Return whether an address is public, and does not map to another one."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        public = address.is_global and not (address.is_multicast or address.is_reserved)
        return public and address not in _RELAYS_OF_6TO4
    # Mapped, compatible and translated addresses are outside: they would reach IPv4 ones.
    public = address in _GLOBAL_V6 and address.scope_id is None
    return public and not any(address in each for each in _NOT_PUBLIC_V6)


def allows(patterns: Sequence[str], host: str, port: int) -> bool:
    """Return whether one of the patterns matches this host and port."""
    for pattern in patterns:
        name, _, told = pattern.partition(":")
        if port not in ((int(told),) if told else PORTS):
            continue
        if name in ("*", host) or (name.startswith("*.") and host.endswith(name[1:])):
            return True
    return False


async def resolve(host: str, port: int) -> list[str]:
    """Resolve a name by the system's resolver."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(each[4][0]) for each in found))


async def connect(address: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to an address; names are never looked up here."""
    return await asyncio.open_connection(address, port, limit=_PIECE_BYTES)


class Proxy:
    """Handles the connections of one sandbox."""

    def __init__(
        self,
        rules: Sequence[Sequence[str]],
        *,
        trusted: Sequence[str] = (),
        resolve: Resolve = resolve,
        connect: Connect = connect,
    ) -> None:
        self._rules = rules  # a host must match each of these lists
        self._trusted = trusted  # hosts whose addresses may be private
        self._resolve = resolve
        self._connect = connect
        self._connections = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one connection until it ends."""
        self._connections += 1
        try:
            if self._connections > CONNECTIONS_MAX:
                raise Refused(503, f"more than {CONNECTIONS_MAX} connections at once")
            async with asyncio.timeout(_HEAD_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
            await self._pass_on(head, reader, writer)
        except Refused as refused:
            await _say(writer, refused.status, str(refused))
        except (asyncio.LimitOverrunError, ValueError):
            await _say(writer, 400, "this is no request that a proxy takes")
        except (OSError, EOFError, TimeoutError):
            pass  # a side closed the connection
        finally:
            self._connections -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _pass_on(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        method, target, version, fields = parse_head(head)
        if method == "CONNECT":
            host, port = split_authority(target, default_port=0)
            upstream = await self._open(host, port)
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await _tunnel((reader, writer), upstream)
            return
        parts = urlsplit(target)
        if parts.scheme != "http" or parts.username is not None or parts.password is not None:
            raise Refused(400, "the address must begin with http://; use CONNECT for https")
        host, port = split_authority(parts.netloc, default_port=80)
        length = body_length(fields)
        upstream = await self._open(host, port)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        kept = [f"{name}: {value}" for name, value in fields if name.lower() not in _HOP_BY_HOP]
        lines = [f"{method} {path} {version}", f"Host: {parts.netloc}", *kept, "Connection: close"]
        upstream[1].write("".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1"))
        # Only the announced body: a further request on the connection could be for another host.
        sending = asyncio.create_task(_send_body(reader, upstream[1], length))
        try:
            await _copy(upstream[0], writer)
        finally:
            sending.cancel()
            upstream[1].close()

    async def _open(
        self, host: str, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if not all(allows(patterns, host, port) for patterns in self._rules):
            raise Refused(403, f"{host}:{port} is not among the hosts that this node may reach")
        try:
            found = await self._resolve(host, port)
        except (OSError, UnicodeError):
            raise Refused(502, f"the name {host} is not known") from None
        if allows(self._trusted, host, port):
            public = list(found)[:_ADDRESSES_MAX]
        else:
            public = [each for each in found if is_public(each)][:_ADDRESSES_MAX]
        if not public:
            raise Refused(403, f"{host} has no public address, and only those are allowed")
        for address in public:
            try:
                async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                    return await self._connect(address, port)
            except (OSError, TimeoutError):
                continue
        raise Refused(502, f"{host}:{port} does not respond")


def parse_head(head: bytes) -> tuple[str, str, str, list[tuple[str, str]]]:
    """Parse the head of a request; raises ValueError if it is not in the plain form."""
    if len(head) > HEAD_BYTES_MAX:
        raise ValueError("too long")
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    method, target, version = first.split(" ")
    if not _METHOD.fullmatch(method) or version not in ("HTTP/1.1", "HTTP/1.0"):
        raise ValueError("no method")
    fields = []
    for line in lines:
        name, colon, value = line.partition(":")
        # Continued lines and names with spaces are ambiguous, so they are not forwarded.
        if not colon or not name or name != name.strip() or not name.isprintable():
            raise ValueError("no field")
        if "\r" in value or "\n" in value or "\0" in value:
            raise ValueError("no value")
        fields.append((name, value.strip()))
    if not target.isascii() or not target.isprintable():
        raise ValueError("no target")
    return method, target, version, fields


def split_authority(text: str, *, default_port: int) -> tuple[str, int]:
    """Parse `host:port`; raises ValueError if the host is not a name."""
    host, colon, told = text.partition(":")
    port = int(told) if colon and told.isdigit() and len(told) <= 5 else default_port  # noqa: PLR2004
    host = host.lower().removesuffix(".")
    if (colon and not told.isdigit()) or not 0 < port < 65536 or not _HOST.fullmatch(host):  # noqa: PLR2004
        raise ValueError("no host")
    return host, port


def body_length(fields: Sequence[tuple[str, str]]) -> int:
    """Return the length of the body; a request without a known length is refused."""
    told = {value for name, value in fields if name.lower() == "content-length"}
    if any(name.lower() == "transfer-encoding" for name, _ in fields):
        raise Refused(411, "a request body over plain http must have a length")
    if not told:
        return 0
    [length] = told  # two lengths make it ambiguous
    if not length.isdigit():
        raise ValueError("no length")
    return int(length)


async def _send_body(reader: asyncio.StreamReader, to: asyncio.StreamWriter, length: int) -> None:
    while length:
        piece = await reader.read(min(length, _PIECE_BYTES))
        if not piece:
            return
        length -= len(piece)
        to.write(piece)
        await to.drain()


async def _tunnel(
    one: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    other: tuple[asyncio.StreamReader, asyncio.StreamWriter],
) -> None:
    ways = [asyncio.create_task(_copy(a, b)) for a, b in ((one[0], other[1]), (other[0], one[1]))]
    try:
        # An error in one direction ends both; an end of stream is passed on, and the other
        # continues.
        await asyncio.gather(*ways)
    finally:
        for way in ways:
            way.cancel()
        other[1].close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        async with asyncio.timeout(_IDLE_TIMEOUT_S):
            piece = await reader.read(_PIECE_BYTES)
        if not piece:
            break
        writer.write(piece)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


_REASONS: Mapping[int, str] = {
    400: "Bad Request",
    403: "Forbidden",
    411: "Length Required",
    502: "Bad Gateway",
    503: "Service Unavailable",
}


async def _say(writer: asyncio.StreamWriter, status: int, why: str) -> None:
    text = f"qflow: {why}\n"
    head = f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: text/plain; charset=utf-8\r\n"
    length = f"Content-Length: {len(text.encode())}\r\nConnection: close\r\n\r\n"
    with contextlib.suppress(OSError):
        writer.write(f"{head}{length}{text}".encode())
        await writer.drain()


async def serve(listener: socket.socket, proxy: Proxy, ended: Awaitable[object]) -> None:
    """Serve until `ended`."""
    server = await asyncio.start_server(proxy.answer, sock=listener, limit=HEAD_BYTES_MAX)
    await ended
    server.close()


def give_up_rights() -> None:
    """Become the user nobody, with little memory and few files."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES_MAX, _MEMORY_BYTES_MAX))
    files = 4 * CONNECTIONS_MAX
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)


async def main() -> None:
    """Serve the socket given on the command line."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    told = json.loads(sys.stdin.buffer.readline())
    give_up_rights()
    listener.setblocking(False)
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)
    await serve(listener, Proxy(told["rules"], trusted=told["trusted"]), ended)


if __name__ == "__main__":
    asyncio.run(main())
