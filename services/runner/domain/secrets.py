"""Secrets: what may be one, and how what a node writes is kept from showing it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import quote

from services.runner.domain.outcome import AttemptError

# The variable of the process by which a node reads a secret of this name.
VARIABLE_PREFIX: Final = "QFLOW_SECRET_"
SECRETS_MAX: Final = 1_000
GRANTED_MAX: Final = 32
VERSIONS_KEPT: Final = 10
# What stands in place of a secret.
MASKED: Final = "***"
_MARK: Final = MASKED.encode()
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
        forms = {form.encode() for secret in secrets for form in _forms(secret)}
        # The longest first, so that a secret within another does not leave the rest of it. Each is
        # looked for by itself: that is linear whatever they are, where one pattern of all would
        # let a secret of many equal letters hold up the runner.
        self._forms = sorted(forms, key=len, reverse=True)
        self.bytes_max: Final = max((len(each) for each in forms if b"\n" not in each), default=0)

    def __bool__(self) -> bool:
        return bool(self._forms)

    def raw(self, text: bytes) -> bytes:
        """Give bytes without secrets."""
        for form in self._forms:
            text = text.replace(form, _MARK)
        return text

    def text(self, text: str) -> str:
        """Give a text without secrets."""
        if not self._forms or not text:
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

    def outputs(self, outputs: Sequence[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        """Give outputs by name without secrets; a matter of their size."""
        return [(name, self.value(text)) for name, text in outputs]

    def error(self, error: AttemptError) -> AttemptError:
        """Give an error that says no secret, nor do those behind it."""
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
    """Takes secrets out of a stream, also where they come in pieces.

    Lines are shown when they end: nothing looked for goes over more than one, since of a secret of
    several lines each is looked for. Of a line that does not end, what may begin a secret is held.
    """

    def __init__(self, mask: Mask) -> None:
        self._mask = mask
        self._held = b""

    def feed(self, piece: bytes) -> bytes:
        """Give what can be shown already."""
        text = self._mask.raw(self._held + piece)
        ended = text.rfind(b"\n") + 1
        at = max(ended, len(text) - self._mask.bytes_max + 1, 0)
        self._held = text[at:]
        return text[:at]

    def end(self) -> bytes:
        """Give what was held back."""
        held, self._held = self._held, b""
        return held


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
