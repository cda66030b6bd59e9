"""Explains why a service was not reached, and what to do.

gRPC describes it in terms of its own layers. Common cases are translated; other messages are passed
on unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

# Parts of gRPC's messages and their meanings; the first match counts. `{host}`: of the address.
_OVER_TLS: Final[Sequence[tuple[str, str]]] = (
    (
        "WRONG_VERSION_NUMBER",
        (
            "it speaks plain text, and TLS was asked for. Leave out --tls and --ca-file "
            "(QFLOW_TLS, QFLOW_CA_FILE) where that is meant, else look whether the address is"
            " right"
        ),
    ),
    (
        "certificate has expired",
        "its certificate has expired. Have it renewed, and look whether the clock is right here",
    ),
    (
        "certificate is not yet valid",
        "its certificate is not valid yet. Look whether the clock is right here and there",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED",
        (
            "its certificate is of an authority that is not trusted here. Name that "
            "authority's file (authority.crt of the deployment): `qflow login ADDRESS "
            "--ca-file FILE`, or QFLOW_CA_FILE"
        ),
    ),
    (
        "Hostname Verification",
        (
            "its certificate is not for {host}. Use a name that stands in it, or have this "
            "one added (QFLOW_TLS_HOSTS of the suite)"
        ),
    ),
    (
        "not in peer certificate",
        (
            "its certificate is not for {host}. Use a name that stands in it, or have this "
            "one added (QFLOW_TLS_HOSTS of the suite)"
        ),
    ),
    (
        "Socket closed",
        (
            "it ended the connection before the call: perhaps it asks for a certificate of "
            "the caller (QFLOW_CERTIFICATE_FILE, QFLOW_KEY_FILE), perhaps it is just being "
            "started"
        ),
    ),
)
_PLAIN: Final[Sequence[tuple[str, str]]] = (
    (
        "Socket closed",
        (
            "it ended the connection before the call: perhaps it speaks TLS (`qflow login "
            "ADDRESS --ca-file FILE`, or QFLOW_CA_FILE), perhaps it is just being started"
        ),
    ),
)
_ANYHOW: Final[Sequence[tuple[str, str]]] = (
    (
        "Connection refused",
        (
            "nothing listens there (connection refused). Start it, or look whether the "
            "address is right: `qflow context ls`"
        ),
    ),
    (
        "Domain name not found",
        "the name {host} is not known. Look whether it is written right: `qflow context ls`",
    ),
    (
        "errors resolving",
        (
            "the name {host} cannot be looked up. Look whether it is written right, and "
            "whether this machine is on the network"
        ),
    ),
    (
        "Failed parsing HTTP/2",
        "what listens there speaks no gRPC. Look whether host and port are those of a Qflow",
    ),
    (
        "Network is unreachable",
        "there is no way to {host} from here. Look whether this machine is on the network",
    ),
    (
        "No route to host",
        "there is no way to {host} from here. Look whether that machine is up, and its firewall",
    ),
    (
        "imed out",
        "nothing came back in time. Look whether that machine is up, and its firewall",
    ),
)


def sentence(address: str, words: str, *, encrypted: bool) -> str:
    """Return a message that no service answers at an address, with the cause and what to do."""
    host = address.rpartition(":")[0] or address
    for known, meaning in (*(_OVER_TLS if encrypted else _PLAIN), *_ANYHOW):
        if known in words:
            return f"no Qflow answers at {address}: {meaning.format(host=host)}"
    return f"no Qflow answers at {address}: {words}"
