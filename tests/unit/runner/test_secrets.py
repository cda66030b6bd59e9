"""Secrets: what masks find, what holds a stream back, and what a root key opens."""

from __future__ import annotations

import base64
import json
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.kit.env import EnvError
from services.kit.root_keys import CannotOpen, LocalKeys
from services.runner.domain.secrets import Mask, StreamMask
from services.runner.gateways.secret_box import rewrap, seal, unseal
from tests.support.cost import counted

_K1 = "k1:" + base64.b64encode(b"1" * 32).decode()
_K2 = "k2:" + base64.b64encode(b"2" * 32).decode()
_SECRET = 'pa"ss\nwörd/+='


def keys(*lines: str) -> LocalKeys:
    return LocalKeys.parse("\n".join(lines), setting="HERE")


@pytest.mark.parametrize(
    "shown",
    [
        _SECRET,
        json.dumps(_SECRET),
        json.dumps(_SECRET, ensure_ascii=False),
        repr(_SECRET),
        base64.b64encode(_SECRET.encode()).decode(),
        _SECRET.encode().hex(),
        "https://u:pa%22ss%0Aw%C3%B6rd%2F%2B%3D@host/",
    ],
)
def test_a_secret_is_found_however_it_is_commonly_written(shown: str) -> None:
    masked = Mask([_SECRET]).text(f"before {shown} after")
    assert masked.startswith("before ")
    assert "***" in masked
    assert "ss" not in masked.replace("***", "").replace("after", "")[7:]


def test_each_long_line_of_a_key_is_one_too() -> None:
    key = "-----BEGIN KEY-----\nabcdefghijklmnop\nqrs\n-----END KEY-----"
    assert "x *** y" == Mask([key]).text("x abcdefghijklmnop y")
    assert "x qrs y" == Mask([key]).text("x qrs y")


def test_a_secret_within_another_leaves_nothing_of_it() -> None:
    assert "***" == Mask(["secret", "my secret word"]).text("my secret word")


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from([b"abcabd", b"abc", b"ab", b"x", b"\n", b"abcabdabcabd", b"a"])),
    st.data(),
)
def test_however_a_stream_is_cut_it_shows_what_the_whole_would(
    pieces: list[bytes], data: st.DataObject
) -> None:
    whole = b"".join(pieces)
    mask = Mask(["abcabd"])
    stream, shown, at = StreamMask(mask), b"", 0
    while at < len(whole):
        size = data.draw(st.integers(1, 5))
        shown += stream.feed(whole[at : at + size])
        at += size
    assert mask.raw(whole) == shown + stream.end()


def test_a_stream_is_shown_line_by_line_and_holds_no_more_than_may_begin_a_secret() -> None:
    stream = StreamMask(Mask(["abcabd"]))
    assert b"line\n" == stream.feed(b"line\nabc")
    assert b"***\n" == stream.feed(b"abd\nx")
    longest = Mask(["abcabd"]).bytes_max
    shown = stream.feed(b"y" * 1_000)
    assert len(shown) == 1_001 - longest + 1
    assert b"x" + b"y" * 1_000 == shown + stream.end()


def test_no_secret_makes_looking_for_it_slow() -> None:
    """B99: one of many equal letters, in a text of no others."""
    mask = Mask(["a" * 8_000 + "b"])
    stream = StreamMask(mask)
    with counted() as cost:
        shown = b"".join(stream.feed(b"a" * 64 * 1024) for _ in range(16)) + stream.end()
    assert len(shown) == 1024 * 1024
    assert cost.ms < 2000


def test_an_output_that_is_no_json_any_more_becomes_the_mark() -> None:
    mask = Mask(["123456"])
    assert b'"***"' == mask.value(b"[1234567]")
    assert b'{"a": "***"}' == mask.value(b'{"a": "123456"}')
    assert b"[1, 2]" == mask.value(b"[1, 2]")


def test_what_is_sealed_opens_for_its_own_row_alone() -> None:
    root, tenant, secret = keys(_K1), uuid4(), uuid4()
    sealed = seal(root, "value", tenant_id=tenant, secret_id=secret, version=1)
    assert b"value" not in sealed.sealed
    assert "value" == unseal(root, sealed, tenant_id=tenant, secret_id=secret, version=1)
    for other in (
        {"tenant_id": uuid4(), "secret_id": secret, "version": 1},
        {"tenant_id": tenant, "secret_id": uuid4(), "version": 1},
        {"tenant_id": tenant, "secret_id": secret, "version": 2},
    ):
        with pytest.raises(CannotOpen):
            unseal(root, sealed, **other)  # type: ignore[arg-type]


def test_the_same_value_is_never_sealed_alike() -> None:
    root, tenant, secret = keys(_K1), uuid4(), uuid4()
    one, two = (
        seal(root, "value", tenant_id=tenant, secret_id=secret, version=1) for _ in range(2)
    )
    assert one.sealed != two.sealed
    assert one.wrapped_key != two.wrapped_key


def test_a_new_root_key_takes_over_and_the_old_one_may_go() -> None:
    of = {"tenant_id": uuid4(), "secret_id": uuid4(), "version": 1}
    before = seal(keys(_K1), "value", **of)  # type: ignore[arg-type]
    after = rewrap(keys(_K2, _K1), before, **of)  # type: ignore[arg-type]
    assert ("k2", before.sealed) == (after.key_id, after.sealed)
    assert "value" == unseal(keys(_K2), after, **of)  # type: ignore[arg-type]
    with pytest.raises(CannotOpen, match="no root key k1"):
        unseal(keys(_K2), before, **of)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["k1", "k1:", "k1:YQ==", f"K1{_K1[2:]}", f"{_K1},{_K1}", "k1:%%"])
def test_a_root_key_that_is_none_stops_the_runner_and_is_not_told(text: str) -> None:
    """I37."""
    with pytest.raises(EnvError) as told:
        keys(text)
    assert "HERE" in str(told.value)
    assert base64.b64encode(b"1" * 32).decode() not in str(told.value)


def test_keys_are_in_one_place() -> None:
    with pytest.raises(EnvError, match="both set"):
        LocalKeys.from_env({"QFLOW_SECRETS_KEY_FILE": "/x", "QFLOW_SECRETS_KEYS": _K1})
    assert None is LocalKeys.from_env({})
    found = LocalKeys.from_env({"QFLOW_SECRETS_KEYS": f"{_K2},{_K1}"})
    assert found is not None
    assert "k2" == found.current
    assert base64.b64encode(b"2" * 32).decode() not in repr(found)
