"""The outputs of nodes: JSON texts, or references to files for large ones."""

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
    counts: Mapping[str, int] = field(default_factory=dict)  # lengths of outputs that are lists


@dataclass(frozen=True, slots=True)
class FilePart:
    """A value in a file: one of its fields, or an element of a list in that."""

    file: FileValue
    field: str
    index: int | None = None


@dataclass(frozen=True, slots=True)
class FileList:
    """The elements of a list in a file, which runners extract."""

    file: FileValue
    field: str
    count: int

    def __len__(self) -> int:
        """Count the elements."""
        return self.count

    def __getitem__(self, index: int) -> FilePart:
        """Return a reference to an element."""
        return FilePart(self.file, self.field, index)


@dataclass(frozen=True, slots=True)
class Spliced:
    """A JSON text in pieces, some of them in files, which a runner joins."""

    pieces: tuple[bytes | FilePart, ...]


@dataclass(frozen=True, slots=True)
class ListOutput:
    """The outputs of a map's elements, in order; None for quarantined ones."""

    items: Sequence[NodeOutput | None]


NodeOutput: TypeAlias = "tuple[bytes, ...] | FileValue | ListOutput"
Value: TypeAlias = "bytes | FilePart | Spliced"  # JSON text, or a reference


class UnreadableError(Exception):
    """The engine has to read a value that it does not hold, or cannot convert."""


class UnconvertedError(UnreadableError):
    """The conversion of an edge refused the value of `input`."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.input = name


def field_of(output: NodeOutput | None, binding: Binding) -> Value:
    """Return the output of a binding, or a reference to it."""
    if isinstance(output, FileValue):
        return FilePart(output, binding.key)
    if has_files(output):
        return Spliced(tuple(_joined(_pieces(output, binding))))
    return text_of(output, binding.output)


def file_of(output: NodeOutput | None) -> UUID | None:
    """Return the file of an output, if it is in one."""
    return output.file_id if isinstance(output, FileValue) else None


def has_files(output: NodeOutput | None) -> bool:
    """Return whether any element's output is in a file."""
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
    """Join consecutive texts."""
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
    """Return one output as JSON text; outputs of elements are joined to a list."""
    if output is None:
        return b"null"
    if isinstance(output, tuple):
        return output[index]
    if isinstance(output, ListOutput):
        return b"[" + b",".join(text_of(each, index) for each in output.items) + b"]"
    raise UnreadableError("an element's value is larger than 64 KiB")
