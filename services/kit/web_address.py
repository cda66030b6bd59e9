"""Which user-supplied URLs may be called: public addresses over TLS, in plain notation."""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final
from urllib.parse import SplitResult, urlsplit

Address = IPv4Address | IPv6Address
Trusted = Callable[[str, int], bool]

URL_BYTES_MAX: Final = 2048
_HOST: Final = re.compile(r"(?=.{1,253}\Z)([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.?)+")
# Resolvers parse these as numbers: 2130706433, 0x7f.1, 0177.0.0.1, 127.1.
_NUMERIC: Final = re.compile(r"(0[xX][0-9A-Fa-f]*|[0-9]+)\Z")
_GLOBAL_V6: Final = IPv6Network("2000::/3")
# Parts of the global range that map to other addresses, or are not assigned to hosts.
_NOT_PUBLIC_V6: Final = tuple(
    IPv6Network(each)
    for each in (
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
        *("2620:4f:8000::/48", "2001:20::/28"),
    )
)


class Refused(Exception):  # noqa: N818  # the name says what became of the address
    """The reason why an address may not be called."""


def check_url(url: str, *, loopback: bool, trusted: Trusted | None = None) -> None:
    """Raise `Refused` unless a URL may be called; resolved addresses are checked at the call.

    Hosts and ports that a deployment trusts may be private, and plain http.
    """
    parts, port = _read(url)
    host = parts.hostname or ""
    default_port = 80 if parts.scheme == "http" else 443
    is_trusted = trusted is not None and trusted(host, default_port if port is None else port)
    if parts.scheme not in ({"https", "http"} if loopback or is_trusted else {"https"}):
        raise Refused("must begin with https://")
    if parts.username is not None or parts.password is not None or "#" in url:
        raise Refused("must have no user, no password and no fragment")
    if port == 0:
        raise Refused("has an invalid port")
    if is_trusted:
        return
    literal = literal_address(host)
    if literal is not None:
        check_address(literal, loopback=loopback)
    elif not _HOST.fullmatch(host) or _NUMERIC.search(host.rstrip(".").rpartition(".")[2]):
        raise Refused("must name its host by a name, or by an address in the usual notation")
    own = host == "localhost" if literal is None else literal.is_loopback
    if parts.scheme == "http" and not own:
        raise Refused("must begin with https://")


def _read(url: str) -> tuple[SplitResult, int | None]:
    if len(url.encode()) > URL_BYTES_MAX:
        raise Refused(f"has more than {URL_BYTES_MAX} bytes")
    if not url.isascii() or not url.isprintable() or any(each in url for each in ' \\"<>^`{|}'):
        raise Refused("may have only printable ASCII characters; percent-encode others")
    try:
        parts = urlsplit(url)
        return parts, parts.port
    except ValueError:
        raise Refused("is not a URL") from None


def literal_address(host: str) -> Address | None:
    """Parse a host that is an IP address in the usual notation; None if it is not."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def check_address(address: Address, *, loopback: bool) -> None:
    """Raise `Refused` unless an address is public; `loopback` allows that of this machine."""
    if loopback and address.is_loopback:
        return
    if isinstance(address, IPv4Address):
        # What is assigned to anything but hosts of the internet is not global.
        public = address.is_global and not (address.is_multicast or address.is_reserved)
        # The anycast range of 6to4 relays, which is only for routers.
        public = public and not str(address).startswith("192.88.99.")
    else:
        # Mapped, compatible and translated addresses are outside: they would reach IPv4 ones.
        public = address in _GLOBAL_V6 and not any(address in each for each in _NOT_PUBLIC_V6)
        public = public and address.scope_id is None
    if not public:
        raise Refused("its address is not a public one")
