"""Envelope encryption: each version of a secret under a key of its own, those under a root key.

The root keys come from a file or a variable, and stay in this process; whatever keeps them instead,
a service for keys for instance, is another `RootKeys`. AES-256-GCM throughout; what is sealed is
bound to its tenant, secret and version, so that no row can stand in another's place.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, Self
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.kit.env import EnvError
from services.runner.domain.secrets import Sealed

_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_KEY_ID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_FILE: Final = "QFLOW_SECRETS_KEY_FILE"
_TEXT: Final = "QFLOW_SECRETS_KEYS"


class CannotOpen(Exception):  # noqa: N818 - it says what happened
    """A root key is missing, or what is stored was changed."""


class RootKeys(Protocol):
    """What wraps the keys of versions: the port for wherever root keys are kept."""

    @property
    def current(self) -> str:
        """The id of the one that new keys are wrapped under."""

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Wrap a key under the current root key, bound to a context."""

    def unwrap(self, wrapped: bytes, key_id: str, context: bytes) -> bytes:
        """Give the key again; raises CannotOpen."""


@dataclass(frozen=True, slots=True)
class LocalKeys:
    """Root keys of a file or a variable: one `id:base64` a line, the current one first."""

    current: str
    _keys: Mapping[str, bytes] = field(repr=False)

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self | None:
        """Read them; None where a deployment keeps no secrets. Faults name the setting alone."""
        path, text = env.get(_FILE, ""), env.get(_TEXT, "")
        if path and text:
            raise EnvError(f"{_FILE} and {_TEXT} are both set; the keys are in one place")
        if path:
            try:
                text = Path(path).read_text("ascii")
            except (OSError, UnicodeDecodeError):
                raise EnvError(f"{_FILE} cannot be read") from None
        if not text.strip():
            if path:
                raise EnvError(f"{_FILE} holds no key")
            return None
        return cls.parse(text, setting=_FILE if path else _TEXT)

    @classmethod
    def parse(cls, text: str, *, setting: str) -> Self:
        """Read lines, or what stands between commas."""
        keys: dict[str, bytes] = {}
        for line in text.replace(",", "\n").split("\n"):
            if not line.strip():
                continue
            key_id, _, encoded = line.strip().partition(":")
            try:
                key = base64.b64decode(encoded, validate=True)
            except binascii.Error:
                key = b""
            if not _KEY_ID.fullmatch(key_id) or len(key) != _KEY_BYTES or key_id in keys:
                raise EnvError(
                    f"{setting} must hold lines of id:key, the current key first: ids of lower-"
                    f"case letters and digits, each once, keys of {_KEY_BYTES} bytes in base64"
                )
            keys[key_id] = key
        return cls(next(iter(keys)), keys)

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """See RootKeys."""
        return _encrypt(self._keys[self.current], key, context)

    def unwrap(self, wrapped: bytes, key_id: str, context: bytes) -> bytes:
        """See RootKeys."""
        root = self._keys.get(key_id)
        if root is None:
            raise CannotOpen(f"this runner has no root key {key_id}")
        return _decrypt(root, wrapped, context)


def seal(keys: RootKeys, value: str, *, tenant_id: UUID, secret_id: UUID, version: int) -> Sealed:
    """Encrypt a version under a key of its own."""
    context = _context(tenant_id, secret_id, version)
    key = AESGCM.generate_key(_KEY_BYTES * 8)
    return Sealed(keys.current, keys.wrap(key, context), _encrypt(key, value.encode(), context))


def unseal(
    keys: RootKeys, stored: Sealed, *, tenant_id: UUID, secret_id: UUID, version: int
) -> str:
    """Give the value again; raises CannotOpen."""
    context = _context(tenant_id, secret_id, version)
    key = keys.unwrap(stored.wrapped_key, stored.key_id, context)
    return _decrypt(key, stored.sealed, context).decode()


def rewrap(
    keys: RootKeys, stored: Sealed, *, tenant_id: UUID, secret_id: UUID, version: int
) -> Sealed:
    """Wrap the key of a version under the current root key; what is sealed stays as it is."""
    context = _context(tenant_id, secret_id, version)
    key = keys.unwrap(stored.wrapped_key, stored.key_id, context)
    return Sealed(keys.current, keys.wrap(key, context), stored.sealed)


def _context(tenant_id: UUID, secret_id: UUID, version: int) -> bytes:
    return f"qflow secret {tenant_id} {secret_id} {version}".encode()


def _encrypt(key: bytes, text: bytes, context: bytes) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, text, context)


def _decrypt(key: bytes, stored: bytes, context: bytes) -> bytes:
    try:
        return AESGCM(key).decrypt(stored[:_NONCE_BYTES], stored[_NONCE_BYTES:], context)
    except (InvalidTag, ValueError):
        raise CannotOpen("what is stored of it was changed, or its key is another") from None
