"""Output of nodes: lines, their limits, and the functions that sanitise all their text."""

from __future__ import annotations

import codecs
import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

# Longer lines continue in the next entry.
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
    """One line of an attempt as it is stored, without its line feed."""

    execution_id: UUID
    node_execution_id: UUID
    node_id: str
    attempt: int
    stream: Stream
    line: str
    logged_at: datetime
    level: int | None = None
    logger: str = ""
    continued: bool = False  # the line continues in the next entry of its stream
    left_out_bytes: int = 0  # if not 0, this entry has no text but stands for omitted output


@dataclass(frozen=True, slots=True, kw_only=True)
class LogCaps:
    """How much output of one attempt is kept; with 0 bytes none is."""

    bytes_max: int = 1024 * 1024
    lines_max: int = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCaps:
    """How much output of one run is kept, over all attempts."""

    bytes_max: int = 64 * 1024 * 1024
    lines_max: int = 200_000


def shown(text: str) -> str:
    """Sanitise text of user code for storage and display.

    All output of user code passes through here, lines, tails and errors alike, so this is the place
    to remove what must not be shown.
    """
    return text.replace("\0", "\ufffd")


def shown_bytes(raw: bytes) -> str:
    """Decode and sanitise output of user code; invalid UTF-8 is marked."""
    return shown(raw.decode("utf-8", "replace"))


@dataclass(slots=True)
class LineCutter:
    """Splits a stream of pieces into lines, and long lines into parts."""

    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )
    _rest: str = ""

    def feed(self, piece: bytes) -> Iterator[tuple[str, bool]]:
        """Yield (text, whether the line continues) for complete lines, and parts of long ones."""
        text = self._rest + self._decoder.decode(piece)
        *lines, self._rest = text.split("\n")
        for line in lines:
            yield from _parts(line, ends=True)
        while len(self._rest.encode()) > LINE_BYTES_MAX:
            head, self._rest = _head(self._rest)
            yield head, True

    def end(self) -> Iterator[tuple[str, bool]]:
        """Yield the rest, which has no line feed."""
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
    """Split a text so that the first part fits into an entry."""
    head = text.encode()[:LINE_BYTES_MAX].decode("utf-8", "ignore")
    return head, text[len(head) :]
