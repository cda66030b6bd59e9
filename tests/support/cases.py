"""Which cases the tests are about: what they say of themselves, held against docs/cases.md.

`python -m tests.support.cases` prints every case with the tests that name it.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).resolve().parents[2]
LIST: Final = _ROOT / "docs" / "cases.md"
TESTS: Final = _ROOT / "tests"

_ID: Final = r"(?:B[0-9]{1,3}[a-i]?|(?:CP|[EFGIX])[0-9]{1,2})"
_ROW: Final = re.compile(rf"\| (?P<id>{_ID}) \| (?P<name>[^|]+?) \|(?: (?P<excuse>[^|]*?))? ?\|")
# One case, or a span of them: `X30-X45`.
_NAMED: Final = re.compile(rf"\b({_ID})\b(?:[-\N{{EN DASH}}]({_ID})\b)?")
# Docstrings, comments, and what is called by a case: `B58-5000-digits`, `I26_one_owner`.
_SAID: Final = re.compile(
    rf'''(?P<own>^[ ]*r?)?"""(?P<text>.*?)"""'''
    rf"""|(?:^|[ ]{{2}})[ ]*#[ ](?P<comment>.*?)$|"(?P<called>{_ID})[-_ ]""",
    re.MULTILINE | re.DOTALL,
)
_PARTS: Final = re.compile(r"([A-Z]+)([0-9]+)([a-i]?)")


@dataclass(frozen=True, slots=True)
class Case:
    """A case of the list; `excuse` says why no test names it."""

    id: str
    name: str
    excuse: str = ""


def listed(text: str) -> dict[str, Case]:
    """Read the list."""
    rows = (_ROW.fullmatch(line.strip()) for line in text.splitlines())
    cases = [Case(row["id"], row["name"], row["excuse"] or "") for row in rows if row]
    known = {each.id: each for each in cases}
    assert len(known) == len(cases), "the list names a case twice"
    return known


def claimed(files: Sequence[Path], known: Mapping[str, Case]) -> dict[str, list[str]]:
    """Find what the files say they are about: by case, the places that name it."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in files:
        for line, text in said(path.read_text("utf-8")):
            for case in named(text, known):
                found[case].append(f"{path.relative_to(_ROOT)}:{line}")
    return dict(found)


def test_files() -> list[Path]:
    """All files of the tests but this one and those that tests keep as data."""
    return [each for each in sorted(TESTS.rglob("*.py")) if each != Path(__file__).resolve()]


def said(source: str) -> Iterator[tuple[int, str]]:
    """Give what a file says to its reader, with the line: docstrings, comments, names of cases.

    By their looks alone: to parse all tests takes longer than many of them do.
    """
    for found in _SAID.finditer(source):
        text = found["comment"] or found["called"] or ""
        if found["own"] is not None:  # what stands behind something is data
            text = found["text"]
        if "noqa" not in text:
            yield source.count("\n", 0, found.start()) + 1, text


def named(text: str, known: Mapping[str, Case]) -> Iterator[str]:
    for first, last in _NAMED.findall(text):
        yield first
        if last:
            kind, begin, _ = _key(first)
            other, end, _ = _key(last)
            between = (each for each in known if begin < _key(each)[1] <= end)
            if kind == other:
                yield from (each for each in between if _key(each)[0] == kind)


def _key(case: str) -> tuple[str, int, str]:
    match = _PARTS.fullmatch(case)
    assert match is not None, case
    return match[1], int(match[2]), match[3]


def main() -> int:
    """Print each case with how many places name it and the first of them."""
    known = listed(LIST.read_text("utf-8"))
    found = claimed(test_files(), known)
    for each in known.values():
        places = found.get(each.id, [])
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        what = f"{places[0]}{more}" if places else f"- {each.excuse or 'NO TEST, NO REASON'}"
        stale = "  (has a test now: take its reason out of the list)" if places else ""
        sys.stdout.write(f"{each.id:6}{each.name[:60]:62}{what}{stale if each.excuse else ''}\n")
    without = [each for each in known.values() if each.id not in found]
    open_ones = [each.id for each in without if not each.excuse]
    sys.stdout.write(
        f"{len(known)} cases, {len(known) - len(without)} named by tests,"
        f" {len(without) - len(open_ones)} with a reason, {len(open_ones)} with neither\n"
    )
    return 1 if open_ones else 0


if __name__ == "__main__":
    sys.exit(main())
