"""Counting and cutting lists in JSON texts."""

from __future__ import annotations

import pytest

from services.runner.domain import lists


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (b"[]", 0),
        (b" [ ] ", 0),
        (b"null", 0),
        (b"[null]", 1),
        (b'[1,"a,b",[1,2],{"a":[3,4]}]', 4),
        (b"{}", None),
        (b'"[1,2]"', None),
        (b"7", None),
    ],
)
def test_the_elements_of_a_list_are_counted_and_nothing_else(
    text: bytes, count: int | None
) -> None:
    assert count == lists.count_elements(text)


def test_a_list_that_may_be_too_long_to_hold_is_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lists, "COUNTED_MAX", 3)
    assert 3 == lists.count_elements(b"[1,2,3]")
    assert lists.count_elements(b"[1,2,3,4]") is None


def test_elements_are_cut_exactly_as_they_were_written() -> None:
    text = b'[ 1.0 ,{"b": 1,"a":-0.0}, "\xc3\xa9\\u00e9" ]'
    expected = [b"1.0", b'{"b": 1,"a":-0.0}', b'"\xc3\xa9\\u00e9"']
    assert expected == [bytes(each) for each in lists.split(text)]
    with pytest.raises(ValueError, match="array"):
        lists.split(b"{}")
