"""Channels to this machine's own suite, with or without TLS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import grpc.aio


def open_local(
    address: str, authorities: str | None, *, options: tuple[tuple[str, Any], ...] = ()
) -> grpc.aio.Channel:
    """Open a channel to a service on this machine; with TLS if `authorities` names a file.

    An operator's own certificate names the host that users connect to, not this machine: it is
    trusted as it is, under the name that it contains.
    """
    if authorities is None or address.startswith("unix:"):
        return grpc.aio.insecure_channel(address, options=options)
    text = Path(authorities).read_bytes()
    name = _name_in(text)
    if name is not None:
        options = (*options, ("grpc.ssl_target_name_override", name))
    credentials = grpc.ssl_channel_credentials(text)
    return grpc.aio.secure_channel(address, credentials, options=options)


def _name_in(text: bytes) -> str | None:
    """Return a name from a server's certificate; None for that of an authority."""
    from cryptography import x509  # imported late: not needed without TLS

    extensions = x509.load_pem_x509_certificate(text).extensions
    try:
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return None
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    named = names.get_values_for_type(x509.DNSName)
    return named[0].replace("*", "local") if named else None
