"""What nodes print and log: lines, their caps, and the one function that all their text passes."""

from __future__ import annotations

import codecs
import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

# Longer lines go on in the next entry.
LINE_BYTES_MAX: Final = 8 * 1024
LOGGER_CHARS_MAX: Final = 255
# Levels are those of Python's logging: 10 debug, 20 info, 30 warning, 40 error, 50 critical.
LEVEL_MAX: Final = 100


class Stream(enum.StrEnum):
    """Where a line was written to."""

    STDOUT = "stdout"
    STDERR = "stderr"
    LOG = "log"


class Line(NamedTuple):
    """One line of one attempt, as it is stored; `line` without its line feed."""

    execution_id: UUID
    node_execution_id: UUID
    node_id: str
    attempt: int
    stream: Stream
    line: str
    logged_at: datetime
    level: int | None = None
    logger: str = ""
    continued: bool = False  # the line goes on in the next entry of its stream
    left_out_bytes: int = 0  # here so much is missing; such an entry has no text


@dataclass(frozen=True, slots=True, kw_only=True)
class LogCaps:
    """How much of what one attempt writes is kept; without any bytes nothing is."""

    bytes_max: int = 1024 * 1024
    lines_max: int = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCaps:
    """How much is kept of all that one run writes."""

    bytes_max: int = 64 * 1024 * 1024
    lines_max: int = 200_000


def shown(text: str) -> str:
    """Give text of user code as it may be stored and shown.

    All that user code writes passes here, lines, tails and errors alike: what must not be seen by
    anybody is taken out here.
    """
    return text.replace("\0", "\ufffd")


def shown_bytes(raw: bytes) -> str:
    """Give bytes that user code wrote as text: what is no UTF-8 is marked."""
    return shown(raw.decode("utf-8", "replace"))


@dataclass(slots=True)
class LineCutter:
    """Cuts what comes in pieces into lines, and long ones into parts."""

    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )
    _rest: str = ""

    def feed(self, piece: bytes) -> Iterator[tuple[str, bool]]:
        """Give (text, whether the line goes on) of all that is whole, or long enough."""
        text = self._rest + self._decoder.decode(piece)
        *lines, self._rest = text.split("\n")
        for line in lines:
            yield from _parts(line, ends=True)
        while len(self._rest.encode()) > LINE_BYTES_MAX:
            head, self._rest = _head(self._rest)
            yield head, True

    def end(self) -> Iterator[tuple[str, bool]]:
        """Give what has no line feed after it."""
        text = self._rest + self._decoder.decode(b"", final=True)
        self._rest = ""
        self._decoder.reset()
        if text:
            yield from _parts(text, ends=True)


def _parts(line: str, *, ends: bool) -> Iterator[tuple[str, bool]]:
    while len(line.encode()) > LINE_BYTES_MAX:
        head, line = _head(line)
        yield head, True
    yield line, not ends


def _head(text: str) -> tuple[str, str]:
    """Split where the first part fits."""
    head = text.encode()[:LINE_BYTES_MAX].decode("utf-8", "ignore")
    return head, text[len(head) :]
