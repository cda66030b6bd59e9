"""Inputs and outputs at rest: texts are sealed when they are written and opened when read.

A sealed text is a JSON string, `"qf1.<data key>.<base64>"`, in place of a JSON object or list: so
no clear text looks sealed, and columns keep their types. Each text has a key of its own, derived
from the data key and a random salt, so that the number of texts per data key is not limited. Keys
are only looked up in memory, since texts are opened while rows are decoded.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import re
from collections.abc import Mapping
from typing import Final
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.kit.errors import Unavailable
from services.kit.sealed_form import SALT_BYTES
from services.kit.sealed_mark import SEALED_MARK

_HEAD: Final = re.compile(re.escape(SEALED_MARK) + r"([0-9a-f]{32})\.")
_NONCE: Final = bytes(12)  # safe as a constant: each key encrypts only one text


class DataKeys:
    """The data keys known to this process, and the one to seal with."""

    def __init__(self) -> None:
        self._known: Mapping[UUID, bytes] = {}
        self._current: UUID | None = None

    def learn(self, keys: Mapping[UUID, bytes], current: UUID | None) -> None:
        """Replace the known keys by those of the database."""
        self._known, self._current = keys, current

    def seal(self, text: str) -> str:
        """Return the JSON string to store in place of a JSON text."""
        key_id, key = self.current()
        salt = os.urandom(SALT_BYTES)
        sealed = AESGCM(value_key(key, salt)).encrypt(_NONCE, text.encode(), key_id.bytes)
        return f'{SEALED_MARK}{key_id.hex}.{base64.b64encode(salt + sealed).decode("ascii")}"'

    def open(self, text: str) -> str:
        """Return the clear text; a text that is not sealed is returned as it is.

        Raises Unavailable if the key is not known here yet.
        """
        if not text.startswith(SEALED_MARK):
            return text
        found = _HEAD.match(text)
        raw = b"" if found is None else _decoded(text[found.end() : -1])
        if found is None or len(raw) < SALT_BYTES:
            return text
        key_id = UUID(found[1])
        key = value_key(self.key(key_id), raw[:SALT_BYTES])
        try:
            return AESGCM(key).decrypt(_NONCE, raw[SALT_BYTES:], key_id.bytes).decode()
        except (InvalidTag, ValueError):
            return text  # it was changed: its readers find neither an object nor a list

    def current(self) -> tuple[UUID, bytes]:
        """Return the key to seal new values with; raises Unavailable without one."""
        if self._current is None:
            raise _not_known()
        return self._current, self._known[self._current]

    def key(self, key_id: UUID) -> bytes:
        """Return a key; raises Unavailable if it is not known here."""
        found = self._known.get(key_id)
        if found is None:
            raise _not_known()
        return found


def value_key(key: bytes, salt: bytes) -> bytes:
    """Derive the key of one value."""
    return hmac.digest(key, b"qflow value " + salt, "sha256")


def _decoded(text: str) -> bytes:
    """Decode base64; empty if it is invalid."""
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        return b""


def _not_known() -> Unavailable:
    return Unavailable(
        "DATA_KEY_UNKNOWN",
        "the key of the data is not loaded here yet; try again",
        retry_after_s=5.0,
    )
