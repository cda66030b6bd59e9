"""The outputs of nodes: JSON texts, or references to files for those too large for memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias
from uuid import UUID

from services.orchestrator.domain.plan import Binding


@dataclass(frozen=True, slots=True)
class FileValue:
    """All outputs of a node as one JSON object in a committed file."""

    file_id: UUID
    size_bytes: int
    sha256: bytes
    counts: Mapping[str, int] = field(default_factory=dict)  # elements, of outputs that are lists


@dataclass(frozen=True, slots=True)
class FilePart:
    """A value that stands in a file: one of its fields, or one element of the list there."""

    file: FileValue
    field: str
    index: int | None = None


@dataclass(frozen=True, slots=True)
class FileList:
    """The elements of a list that stands in a file; a runner cuts them out."""

    file: FileValue
    field: str
    count: int

    def __len__(self) -> int:
        """Count the elements."""
        return self.count

    def __getitem__(self, index: int) -> FilePart:
        """Give where an element stands."""
        return FilePart(self.file, self.field, index)


@dataclass(frozen=True, slots=True)
class Spliced:
    """A JSON text in pieces, some of which stand in files; a runner puts them together."""

    pieces: tuple[bytes | FilePart, ...]


@dataclass(frozen=True, slots=True)
class ListOutput:
    """What the elements of a map gave, in their order; None where one was quarantined."""

    items: Sequence[NodeOutput | None]


NodeOutput: TypeAlias = "tuple[bytes, ...] | FileValue | ListOutput"
Value: TypeAlias = "bytes | FilePart | Spliced"  # JSON text, or where it stands


class UnreadableError(Exception):
    """A value that the engine does not hold itself, where it has to read one."""


class UnconvertedError(UnreadableError):
    """A value that the conversion on its edge does not take; `input` is the one it was for."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.input = name


def field_of(output: NodeOutput | None, binding: Binding) -> Value:
    """Give the output that a binding names, or where it stands."""
    if isinstance(output, FileValue):
        return FilePart(output, binding.key)
    if has_files(output):
        return Spliced(tuple(_joined(_pieces(output, binding))))
    return text_of(output, binding.output)


def file_of(output: NodeOutput | None) -> UUID | None:
    """Give the file that an output is, where it is one."""
    return output.file_id if isinstance(output, FileValue) else None


def has_files(output: NodeOutput | None) -> bool:
    """Say whether something of what elements gave stands in files."""
    if isinstance(output, ListOutput):
        return any(isinstance(each, FileValue) or has_files(each) for each in output.items)
    return False


def _pieces(output: NodeOutput | None, binding: Binding) -> Iterator[bytes | FilePart]:
    if isinstance(output, FileValue):
        yield FilePart(output, binding.key)
    elif isinstance(output, ListOutput):
        for at, each in enumerate(output.items):
            yield b"," if at else b"["
            yield from _pieces(each, binding)
        yield b"]" if output.items else b"[]"
    else:
        yield text_of(output, binding.output)


def _joined(pieces: Iterable[bytes | FilePart]) -> Iterator[bytes | FilePart]:
    """Make one of texts that follow one another."""
    texts: list[bytes] = []
    for piece in pieces:
        if isinstance(piece, bytes):
            texts.append(piece)
            continue
        yield b"".join(texts)
        yield piece
        texts.clear()
    yield b"".join(texts)


def text_of(output: NodeOutput | None, index: int) -> bytes:
    """Give one output as JSON text; what elements gave is put together to a list."""
    if output is None:
        return b"null"
    if isinstance(output, tuple):
        return output[index]
    if isinstance(output, ListOutput):
        return b"[" + b",".join(text_of(each, index) for each in output.items) + b"]"
    raise UnreadableError("an element's value is larger than 64 KiB")
