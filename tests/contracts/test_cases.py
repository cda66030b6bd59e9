"""Every case of docs/cases.md has a test that names it, or the list says why it has none."""

from __future__ import annotations

from typing import Final

from tests.support import cases

_KNOWN: Final = cases.listed(cases.LIST.read_text("utf-8"))


def test_every_case_is_named_by_a_test_or_the_list_says_why_not() -> None:
    found = cases.claimed(cases.test_files(), _KNOWN)
    assert [] == [each.id for each in _KNOWN.values() if each.id not in found and not each.excuse]


def test_what_tests_name_is_on_the_list() -> None:
    found = cases.claimed(cases.test_files(), _KNOWN)
    assert {} == {case: places for case, places in found.items() if case not in _KNOWN}


def test_the_list_is_read_whole() -> None:
    """A row that is not understood would be a case that nobody misses."""
    rows = [line for line in cases.LIST.read_text("utf-8").splitlines() if line.startswith("| ")]
    headings = [line for line in rows if line.startswith("| Id |")]
    assert len(_KNOWN) == len(rows) - len(headings)


def test_spans_docstrings_comments_and_names_of_parameters_are_read() -> None:
    known = {each: cases.Case(each, each) for each in ("B1", "B2", "B3", "B4", "X2", "I7", "E1")}
    source = """
def test_one() -> None:
    \"\"\"B1-B3, but not X2000: I7.\"\"\"
    # The same with E1.
    assert "B4-large" != "X2"  # noqa: F401, X2
"""
    said = [text for _, text in cases.said(source)]
    assert {"B1", "B2", "B3", "B4", "E1", "I7"} == {
        case for text in said for case in cases.named(text, known)
    }
