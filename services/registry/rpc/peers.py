"""The origin of a call, by which failed sign-ins are counted."""

from __future__ import annotations

import ipaddress
from typing import Any
from urllib.parse import unquote


def peer_of(context: Any) -> str:
    """Return the caller's address without its port; `local` for a Unix socket.

    For IPv6 it is the /64 network, since a customer has at least that and can vary the rest.
    """
    kind, _, rest = unquote(context.peer()).partition(":")
    if kind not in {"ipv4", "ipv6"}:
        return "local"
    host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
