"""Secrets: what may be one, and how what a node writes is kept from showing it."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

# The variable of the process by which a node reads a secret of this name.
VARIABLE_PREFIX: Final = "QFLOW_SECRET_"
SECRETS_MAX: Final = 1_000
GRANTED_MAX: Final = 32
VERSIONS_KEPT: Final = 10
# What stands in place of a secret.
MASKED: Final = "***"
# A line of a longer secret counts by itself from this length on: shorter ones are common words.
_LINE_CHARS_MIN: Final = 8


@dataclass(frozen=True, slots=True)
class Sealed:
    """A version of a secret as it is stored: encrypted under a key, which is wrapped itself."""

    key_id: str  # of the root key that wraps
    wrapped_key: bytes = field(repr=False)
    sealed: bytes = field(repr=False)


class Mask:
    """Takes secrets out of texts: as they are, and as JSON, base64 and addresses write them.

    Not what code makes of them otherwise: whoever is granted a secret can always tell it in a way
    that nobody looks for. This keeps accidents from being read.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets for form in _forms(secret)}
        # The longest first, so that a secret within another does not leave the rest of it.
        self.forms: Final = sorted((each.encode() for each in forms), key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, self.forms))) if forms else None

    def __bool__(self) -> bool:
        return self._pattern is not None

    def raw(self, text: bytes) -> bytes:
        """Give bytes without secrets."""
        return text if self._pattern is None else self._pattern.sub(MASKED.encode(), text)

    def text(self, text: str) -> str:
        """Give a text without secrets."""
        if self._pattern is None or not text:
            return text
        return self.raw(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    def value(self, text: bytes) -> bytes:
        """Give a JSON text without secrets; one that is none any more becomes the mark itself."""
        masked = self.raw(text)
        if masked == text:
            return text
        try:
            json.loads(masked)
        except (ValueError, RecursionError):
            return json.dumps(MASKED).encode()
        return masked


NO_MASK: Final = Mask(())


class StreamMask:
    """Takes secrets out of a stream, also where they come in pieces.

    What may be the beginning of one is held back until more comes, or the end.
    """

    def __init__(self, mask: Mask) -> None:
        self._mask = mask
        self._held = b""

    def feed(self, piece: bytes) -> bytes:
        """Give what can be shown already."""
        text = self._mask.raw(self._held + piece)
        at = len(text) - self._unfinished(text)
        self._held = text[at:]
        return text[:at]

    def end(self) -> bytes:
        """Give what was held back."""
        held, self._held = self._held, b""
        return held

    def _unfinished(self, text: bytes) -> int:
        """Count the bytes at the end with which some form may begin."""
        return max((_overlap(text, form) for form in self._mask.forms), default=0)


def variables_of(secrets: Mapping[str, str]) -> dict[str, str]:
    """Name the variables by which a node reads its secrets."""
    return {f"{VARIABLE_PREFIX}{name}": value for name, value in secrets.items()}


def _forms(secret: str) -> Iterable[str]:
    """Give how a secret may stand in a text."""
    raw = secret.encode()
    yield secret
    yield json.dumps(secret)[1:-1]
    yield json.dumps(secret, ensure_ascii=False)[1:-1]
    yield repr(secret)[1:-1]
    yield quote(secret, safe="")
    yield raw.hex()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        yield encode(raw).decode().rstrip("=")
    for line in secret.splitlines():
        if len(line) >= _LINE_CHARS_MIN:
            yield line


def _overlap(text: bytes, form: bytes) -> int:
    """Give how long the longest end of a text is with which a form begins, and does not end."""
    start = max(0, len(text) - len(form) + 1)
    at = text.find(form[:1], start)
    while at != -1:
        if form.startswith(text[at:]):
            return len(text) - at
        at = text.find(form[:1], at + 1)
    return 0
