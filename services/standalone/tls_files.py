"""The paths of a suite's certificates, and the TLS settings of its services and clients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from services.kit import env as read

AUTHORITY: Final = "authority.crt"
# The key in `endpoints.json` of the file with which clients verify the services.
ENDPOINTS_KEY: Final = "authorities"


def certificate_of(folder: Path, service: str) -> Path:
    """Return the path of a service's certificate."""
    return folder / f"{service}.crt"


def key_of(folder: Path, service: str) -> Path:
    """Return the path of a service's private key."""
    return folder / f"{service}.key"


def wanted(env: Mapping[str, str]) -> bool:
    """Return whether the suite uses TLS, by QFLOW_TLS."""
    return read.flag(env, "QFLOW_TLS")


def settings_of(folder: Path, service: str, env: Mapping[str, str]) -> dict[str, str]:
    """Return the TLS settings of one service; an operator's own settings take precedence."""
    certificate, key = str(certificate_of(folder, service)), str(key_of(folder, service))
    own = {
        "QFLOW_SERVICE_CERTIFICATE_FILE": certificate,
        "QFLOW_SERVICE_KEY_FILE": key,
        "QFLOW_TLS_CA_FILE": str(folder / AUTHORITY),
    }
    if not read.optional(env, "QFLOW_TLS_CERTIFICATE_FILE"):
        own |= {"QFLOW_TLS_CERTIFICATE_FILE": certificate, "QFLOW_TLS_KEY_FILE": key}
    return own


def believed(folder: Path, env: Mapping[str, str]) -> Path:
    """Return the file with which clients verify the certificates that users see."""
    given = read.optional(env, "QFLOW_TLS_CERTIFICATE_FILE")
    return Path(given) if given else folder / AUTHORITY
