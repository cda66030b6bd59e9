"""Secrets: their limits, and how they are masked in the output of nodes."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import quote

from services.runner.domain.outcome import AttemptError

# Prefix of the environment variables with secrets.
VARIABLE_PREFIX: Final = "QFLOW_SECRET_"
SECRETS_MAX: Final = 1_000
GRANTED_MAX: Final = 32
VERSIONS_KEPT: Final = 10
# Replaces a secret.
MASKED: Final = "***"
_MARK: Final = MASKED.encode()
# Lines of a multi-line secret are masked separately from this length on: shorter ones are common
# words.
_LINE_CHARS_MIN: Final = 8


@dataclass(frozen=True, slots=True)
class Sealed:
    """A stored version of a secret: encrypted under a key, which is wrapped itself."""

    key_id: str  # the root key that wraps it
    wrapped_key: bytes = field(repr=False)
    sealed: bytes = field(repr=False)


class Mask:
    """Masks secrets in texts: as they are, and as encoded in JSON, base64, hexadecimal and URLs.

    Other encodings are not recognised: code that was granted a secret can always reveal it. This
    only prevents accidents.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form.encode() for secret in secrets for form in _forms(secret)}
        # The longest first, so that a secret contained in another leaves nothing of that. Searched
        # one by one, which is linear in any case: one pattern for all could take quadratic time on
        # repetitive secrets.
        self._forms = sorted(forms, key=len, reverse=True)
        self.bytes_max: Final = max((len(each) for each in forms if b"\n" not in each), default=0)

    def __bool__(self) -> bool:
        return bool(self._forms)

    def raw(self, text: bytes) -> bytes:
        """Return bytes with secrets masked."""
        for form in self._forms:
            text = text.replace(form, _MARK)
        return text

    def text(self, text: str) -> str:
        """Return a text with secrets masked."""
        if not self._forms or not text:
            return text
        return self.raw(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    def value(self, text: bytes) -> bytes:
        """Return a JSON text with secrets masked; if that makes it invalid, the mask as a text."""
        masked = self.raw(text)
        if masked == text:
            return text
        try:
            json.loads(masked)
        except (ValueError, RecursionError):
            return json.dumps(MASKED).encode()
        return masked

    def outputs(self, outputs: Sequence[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        """Return outputs by name with secrets masked; takes time in proportion to their size."""
        return [(name, self.value(text)) for name, text in outputs]

    def error(self, error: AttemptError) -> AttemptError:
        """Return an error with secrets masked, including those of its causes."""
        if not self:
            return error
        return replace(
            error,
            message=self.text(error.message),
            exception=self.text(error.exception),
            traceback=self.text(error.traceback),
            causes=[
                each._replace(exception=self.text(each.exception), message=self.text(each.message))
                for each in error.causes
            ],
        )


NO_MASK: Final = Mask(())


class StreamMask:
    """Masks secrets in a stream, even if they are split over pieces.

    Complete lines are passed on at once: no pattern spans lines, since each line of a secret is one
    of its own. Of an unfinished line, what may be the start of a secret is held back.
    """

    def __init__(self, mask: Mask) -> None:
        self._mask = mask
        self._held = b""

    def feed(self, piece: bytes) -> bytes:
        """Return what can be passed on so far."""
        text = self._mask.raw(self._held + piece)
        ended = text.rfind(b"\n") + 1
        at = max(ended, len(text) - self._mask.bytes_max + 1, 0)
        self._held = text[at:]
        return text[:at]

    def end(self) -> bytes:
        """Return what was held back."""
        held, self._held = self._held, b""
        return held


def variables_of(secrets: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables with a node's secrets."""
    return {f"{VARIABLE_PREFIX}{name}": value for name, value in secrets.items()}


def _forms(secret: str) -> Iterable[str]:
    """Yield the forms in which a secret may appear in a text."""
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
