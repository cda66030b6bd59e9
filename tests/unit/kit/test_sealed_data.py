"""Texts sealed at rest: what opens, what does not, and what is left as it is."""

from __future__ import annotations

import json
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.errors import Unavailable
from services.kit.sealed_data import DataKeys

_ID, _OTHER = UUID(int=1), UUID(int=2)


def keys(current: UUID | None = _ID, **more: bytes) -> DataKeys:
    made = DataKeys()
    made.learn({_ID: b"1" * 32, _OTHER: b"2" * 32}, current)
    return made


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_what_is_sealed_is_a_json_string_that_shows_nothing_and_opens_again(text: str) -> None:
    sealed = keys().seal(f"[{text}]")
    assert isinstance(json.loads(sealed), str)
    assert sealed != keys().seal(f"[{text}]")
    assert f"[{text}]" == keys().open(sealed)
    assert f"[{text}]" == keys(_OTHER).open(sealed)


@pytest.mark.parametrize(
    "text", ["{}", '{"a":"qf1."}', '"qf1.x"', "null", '"qf1.' + "0" * 32 + '"']
)
def test_a_clear_text_is_left_as_it_is(text: str) -> None:
    assert text == keys().open(text)


def test_what_was_changed_does_not_open() -> None:
    sealed = keys().seal('{"a":1}')
    for changed in (
        sealed.replace(_ID.hex, _OTHER.hex),
        sealed[:50] + ("A" if sealed[50] != "A" else "B") + sealed[51:],
        sealed[:60] + sealed[64:],
    ):
        assert changed == keys().open(changed)


def test_a_key_that_is_not_known_here_yet_is_waited_for() -> None:
    sealed = keys().seal("{}")
    empty = DataKeys()
    for ask, text in ((empty.open, sealed), (empty.seal, "{}")):
        with pytest.raises(Unavailable) as refused:
            ask(text)
        assert "DATA_KEY_UNKNOWN" == refused.value.reason
