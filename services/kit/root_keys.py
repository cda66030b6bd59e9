"""Root keys, under which other keys are wrapped, and the primitives of all sealing.

They come from a file or a variable and stay in this process; a key management service would be
another implementation of `RootKeys`. AES-256-GCM throughout; what is wrapped is bound to a context,
so that it cannot be opened anywhere else.
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

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.kit.env import EnvError
from services.kit.key_files import SECRETS, told_of

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_KEY_ID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class CannotOpen(Exception):  # noqa: N818 - the name says what happened
    """A root key is missing, or stored data was changed."""


class RootKeys(Protocol):
    """Wraps other keys: the port for wherever root keys are kept."""

    @property
    def current(self) -> str:
        """The id of the key that new keys are wrapped under."""

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Wrap a key under the current root key, bound to a context."""

    def unwrap(self, wrapped: bytes, key_id: str, context: bytes) -> bytes:
        """Unwrap a key; raises CannotOpen."""


@dataclass(frozen=True, slots=True)
class LocalKeys:
    """Root keys from a file or a variable: one `id:base64` per line, the current one first."""

    current: str
    _keys: Mapping[str, bytes] = field(repr=False)

    @classmethod
    def from_env(cls, env: Mapping[str, str], purpose: str = SECRETS) -> Self | None:
        """Read the keys of a purpose; None if there are none. Errors name the setting only.

        Without settings, the file in QFLOW_SECRETS_FOLDER is used, if there is one.
        """
        file, variable = f"{purpose}_KEY_FILE", f"{purpose}_KEYS"
        path, text = told_of(env, purpose)
        if path and text:
            raise EnvError(f"{file} and {variable} are both set; set only one of them")
        if path:
            try:
                text = Path(path).read_text("ascii")
            except (OSError, UnicodeDecodeError):
                raise EnvError(f"{file} cannot be read") from None
        if not text.strip():
            if path:
                raise EnvError(f"{file} contains no key")
            return None
        return cls.parse(text, setting=file if path else variable)

    @classmethod
    def parse(cls, text: str, *, setting: str) -> Self:
        """Parse keys, separated by newlines or commas."""
        keys: dict[str, bytes] = {}
        for line in text.replace(",", "\n").split("\n"):
            if not line.strip():
                continue
            key_id, _, encoded = line.strip().partition(":")
            try:
                key = base64.b64decode(encoded, validate=True)
            except binascii.Error:
                key = b""
            if not _KEY_ID.fullmatch(key_id) or len(key) != KEY_BYTES or key_id in keys:
                raise EnvError(
                    f"{setting} must hold lines of id:key, the current key first: ids of lower-"
                    f"case letters and digits, each once, keys of {KEY_BYTES} bytes in base64"
                )
            keys[key_id] = key
        return cls(next(iter(keys)), keys)

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """See RootKeys."""
        return encrypt(self._keys[self.current], key, context)

    def unwrap(self, wrapped: bytes, key_id: str, context: bytes) -> bytes:
        """See RootKeys."""
        root = self._keys.get(key_id)
        if root is None:
            raise CannotOpen(f"this process has no root key {key_id}")
        return decrypt(root, wrapped, context)


def new_key() -> bytes:
    """Generate a random key."""
    return AESGCM.generate_key(KEY_BYTES * 8)


def encrypt(key: bytes, text: bytes, context: bytes) -> bytes:
    """Encrypt bytes under a key, bound to a context."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, text, context)


def decrypt(key: bytes, stored: bytes, context: bytes) -> bytes:
    """Decrypt bytes; raises CannotOpen."""
    try:
        return AESGCM(key).decrypt(stored[:_NONCE_BYTES], stored[_NONCE_BYTES:], context)
    except (InvalidTag, ValueError):
        raise CannotOpen("its stored data were changed, or encrypted with another key") from None
