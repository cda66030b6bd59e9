"""Where the certificates of a suite lie, and what its services and clients are told of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from services.kit import env as read

AUTHORITY: Final = "authority.crt"
# In `endpoints.json`, beside the addresses: the file by which a client believes the services.
ENDPOINTS_KEY: Final = "authorities"


def certificate_of(folder: Path, service: str) -> Path:
    """Give the file of a service's certificate."""
    return folder / f"{service}.crt"


def key_of(folder: Path, service: str) -> Path:
    """Give the file of a service's private key."""
    return folder / f"{service}.key"


def wanted(env: Mapping[str, str]) -> bool:
    """Whether the suite on one machine speaks TLS: QFLOW_TLS."""
    return read.flag(env, "QFLOW_TLS")


def settings_of(folder: Path, service: str, env: Mapping[str, str]) -> dict[str, str]:
    """Give the settings of one service; what an operator has set is not touched."""
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
    """Give the file by which clients believe what users are shown."""
    given = read.optional(env, "QFLOW_TLS_CERTIFICATE_FILE")
    return Path(given) if given else folder / AUTHORITY
