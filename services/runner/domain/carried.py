"""Values that travel as files: their types, and references to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from services.runner.domain.limits import Tier, meets

# The media type of each file format.
FORMATS: Final[Mapping[str, str]] = {
    "": "application/octet-stream",
    "npy": "application/x-npy",
    "arrow": "application/vnd.apache.arrow.file",
    "pickle": "application/x-python-pickle",
}
PICKLE: Final = "pickle"
# One message carries at most this many descriptors, and the agent sends no more.
FILES_MAX: Final = 64
_TYPES: Final = frozenset({"file", "ndarray", "arrow", "pandas", "polars", "pickle"})


class Carries(NamedTuple):
    """The inputs of a node that may hold files, and whether its outputs may."""

    inputs: frozenset[str]
    outputs: bool


NO_FILES: Final = Carries(frozenset(), outputs=False)


def carries_of(
    inputs: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Any]]
) -> Carries:
    """Derive it from the declared types of a node version."""
    return Carries(
        frozenset(each["name"] for each in inputs if _holds(each["type"])),
        any(_holds(each["type"]) for each in outputs),
    )


def _holds(kind: object) -> bool:
    match kind:
        case {"t": tag, **parts}:
            return tag in _TYPES or any(map(_holds, parts.values()))
        case dict():
            return any(map(_holds, kind.values()))
        case list():
            return any(map(_holds, kind))
        case _:
            return False


def references(value: object) -> Iterator[str]:
    """Yield the ids of the files that a parsed value refers to."""
    match value:
        case {"$file": str(file_id), **rest} if not rest:
            yield file_id
        case dict():
            for each in value.values():
                yield from references(each)
        case list():
            for each in value:
                yield from references(each)


def pickle_refusal(*, of_this_run: bool, made_in: str, opened_in: Tier) -> str:
    """Return why a pickle may not be passed to a node; empty if it may.

    Opening a pickle runs code of its author. So it stays within its run, and is not opened in
    weaker isolation than it was created in.
    """
    if not of_this_run:
        return "a pickle is given to nodes of its own run alone"
    if not made_in or not meets(opened_in, Tier(made_in)):
        return f"a pickle made in {made_in or 'no sandbox'} is not opened in {opened_in.value}"
    return ""
