"""Differences between two texts in bounded time, avoiding difflib's worst cases."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

# The matcher's time grows with the product of the numbers of unmatched lines.
_PRODUCT_MAX: Final = 400_000_000
_DIFF_BYTES_MAX: Final = 1024 * 1024
_CONTEXT_LINES: Final = 3

# An opcode of difflib: a tag, and ranges of lines in both texts.
_Step = tuple[Literal["replace", "delete", "insert", "equal"], int, int, int, int]


@dataclass(frozen=True, slots=True)
class TextDiff:
    """A unified diff; `cut` if it is incomplete, or replaces the whole middle of the text."""

    text: str
    cut: bool


def compare(before: str, after: str, names: tuple[str, str]) -> TextDiff:
    """Compare two texts line by line."""
    if before == after:
        return TextDiff("", cut=False)
    old, new = _split(before), _split(after)
    head, tail = _common(old, new)
    whole = (len(old) - head - tail) * (len(new) - head - tail) > _PRODUCT_MAX
    steps = _steps(old, new, head, tail, whole=whole)
    shown = [f"--- {names[0]}\n", f"+++ {names[1]}\n"]
    size = sum(map(len, shown))
    for line in _lines(old, new, steps):
        size += len(line.encode())
        if size > _DIFF_BYTES_MAX:
            return TextDiff("".join(shown), cut=True)
        shown.append(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n")
    return TextDiff("".join(shown), cut=whole)


def _split(text: str) -> list[str]:
    """Split into lines with their ends at newlines only, as `patch` does.

    str.splitlines would split at other characters too.
    """
    *lines, last = text.split("\n")
    return [f"{line}\n" for line in lines] + ([last] if last else [])


def _common(old: Sequence[str], new: Sequence[str]) -> tuple[int, int]:
    """Return the number of common lines at the start and at the end."""
    shorter = min(len(old), len(new))
    head = next((at for at in range(shorter) if old[at] != new[at]), shorter)
    left = shorter - head
    tail = next((at for at in range(left) if old[-1 - at] != new[-1 - at]), left)
    return head, tail


def _steps(
    old: Sequence[str], new: Sequence[str], head: int, tail: int, *, whole: bool
) -> list[_Step]:
    """Return the opcodes between two texts; only the part between common ends is matched."""
    ends = len(old) - tail, len(new) - tail
    middle: list[_Step] = [("replace", head, ends[0], head, ends[1])]
    if not whole:
        matcher = difflib.SequenceMatcher(None, old[head : ends[0]], new[head : ends[1]])
        middle = [
            (tag, i1 + head, i2 + head, j1 + head, j2 + head)
            for tag, i1, i2, j1, j2 in matcher.get_opcodes()
        ]
    first: _Step = ("equal", 0, head, 0, head)
    last: _Step = ("equal", ends[0], len(old), ends[1], len(new))
    return [step for step in (first, *middle, last) if step[1:3] != step[3:5] or step[1] < step[2]]


def _lines(old: Sequence[str], new: Sequence[str], steps: list[_Step]) -> Iterator[str]:
    """Yield the lines of the unified format."""
    grouping: difflib.SequenceMatcher[str] = difflib.SequenceMatcher()
    grouping.opcodes = steps  # type: ignore[attr-defined]  # as get_opcodes would set it
    for group in grouping.get_grouped_opcodes(_CONTEXT_LINES):
        yield (f"@@ -{_span(group[0][1], group[-1][2])} +{_span(group[0][3], group[-1][4])} @@\n")
        for tag, i1, i2, j1, j2 in group:
            if tag == "equal":
                yield from (f" {line}" for line in old[i1:i2])
                continue
            yield from (f"-{line}" for line in old[i1:i2])
            yield from (f"+{line}" for line in new[j1:j2])


def _span(start: int, end: int) -> str:
    count = end - start
    if count == 1:
        return str(start + 1)
    return f"{start + 1 if count else start},{count}"
