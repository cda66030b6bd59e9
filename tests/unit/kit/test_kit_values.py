"""Ids, pages, settings and codecs."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import given
from hypothesis import strategies as st

from services.kit import env, ids, page
from services.kit.caller import Caller, caller_scope, current_caller
from services.kit.errors import InvalidArgument, Unauthenticated
from services.kit.rpc import codec
from services.kit.rpc.listener import MESSAGE_BYTES_MAX, is_loopback
from services.kit.rpc.pages import Pages
from services.kit.rpc.sizes import in_parts

CALLER = Caller(
    user_id=uuid.UUID(int=6),
    tenant_id=uuid.UUID(int=7),
    role="user",
    is_owner=False,
    scopes=frozenset(),
    kind="user",
    name="x",
    session_id=uuid.UUID(int=0),
    expires_at=datetime(2126, 1, 1, tzinfo=UTC),
)
KEYS: list[page.PageKey] = [
    "näme",
    2**60,
    1.5,
    True,
    None,
    uuid.UUID(int=5),
    datetime(2026, 11, 23, 1, 2, 3, 4, tzinfo=UTC),
]


def test_ids_are_ordered_by_the_moment_they_were_made() -> None:
    made = [ids.uuid7() for _ in range(10_000)]
    assert made == sorted(made)
    assert len(set(made)) == 10_000
    assert {(7, uuid.RFC_4122)} == {(each.version, each.variant) for each in made}
    milliseconds = made[0].int >> 80
    assert abs(milliseconds / 1000 - datetime.now(UTC).timestamp()) < 5


def test_a_token_is_known_by_its_digest_alone() -> None:
    token = ids.new_token()
    assert len(token) <= ids.TOKEN_BYTES_MAX
    assert token != ids.new_token()
    digest = ids.token_sha256("x")
    assert digest == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"


def test_a_page_token_gives_back_its_keys() -> None:
    token = page.encode_token("ListNodes", "digest", CALLER, KEYS)
    assert page.decode_token(token, "ListNodes", "digest", CALLER) == KEYS
    assert None is page.decode_token("", "ListNodes", "digest", CALLER)


@pytest.mark.parametrize(
    ("kind", "digest", "caller"),
    [
        ("ListWorkflows", "digest", CALLER),
        ("ListNodes", "other", CALLER),
        ("ListNodes", "digest", replace(CALLER, tenant_id=uuid.UUID(int=8))),
        ("ListNodes", "digest", replace(CALLER, user_id=uuid.UUID(int=8))),
    ],
)
def test_a_page_token_fits_nothing_and_nobody_else(kind: str, digest: str, caller: Caller) -> None:
    """B62h."""
    token = page.encode_token("ListNodes", "digest", CALLER, KEYS)
    with pytest.raises(InvalidArgument):
        page.decode_token(token, kind, digest, caller)


@pytest.mark.parametrize("more", ["=", "==", "A", "\n", " "])
def test_a_page_token_is_taken_only_as_it_was_given(more: str) -> None:
    """B62h."""
    for keys in (KEYS, KEYS[:1], KEYS[:2]):
        token = page.encode_token("ListNodes", "digest", CALLER, keys)
        with pytest.raises(InvalidArgument):
            page.decode_token(token + more, "ListNodes", "digest", CALLER)


@given(st.text(min_size=1) | st.binary(min_size=1).map(lambda raw: raw.hex()))
def test_no_made_up_page_token_is_taken(token: str) -> None:
    """B62h."""
    with pytest.raises(InvalidArgument):
        page.decode_token(token, "ListNodes", "digest", CALLER)


@given(st.integers(min_value=0, max_value=120), st.integers(min_value=1, max_value=255))
def test_a_page_token_with_one_byte_changed_is_not_taken(place: int, flip: int) -> None:
    """B62h."""
    token = page.encode_token("ListNodes", "digest", CALLER, KEYS)
    place %= len(token)
    changed = token[:place] + chr(ord(token[place]) ^ flip) + token[place + 1 :]
    with pytest.raises(InvalidArgument):
        page.decode_token(changed, "ListNodes", "digest", CALLER)


def test_page_sizes_have_a_default_and_a_silent_cap() -> None:
    """B62g."""
    assert page.page_size(0) == 50
    assert page.page_size(7) == 7
    assert page.page_size(10**9) == 1000
    with pytest.raises(InvalidArgument):
        page.page_size(-1)


async def test_a_page_is_cut_by_bytes_before_it_grows_above_a_message() -> None:
    texts = [StringValue(value="x" * 65_000) for _ in range(100)]
    huge = StringValue(value="x" * MESSAGE_BYTES_MAX)

    async def cut(rows: list[StringValue], size: int) -> tuple[list[StringValue], str]:
        pages = Pages("ListTexts", SimpleNamespace(page_size=size, page_token=""))
        return await pages.cut(
            iter(rows), encode=lambda row: row, key=lambda row: (len(row.value),)
        )

    with caller_scope(CALLER):
        shown, token = await cut(texts, 1000)
        assert texts[: len(shown)] == shown
        assert MESSAGE_BYTES_MAX * 0.95 < sum(each.ByteSize() for each in shown) < MESSAGE_BYTES_MAX
        assert token
        assert texts[:7] == (await cut(texts, 7))[0]
        assert [huge] == (await cut([huge, huge], 7))[0]
        assert (texts[:7], "") == await cut(texts[:7], 7)
        assert ([], "") == await cut([], 7)


async def test_found_rows_are_read_a_slice_at_a_time_until_the_page_is_full() -> None:
    """Large ones one by one, small ones together, and none after the last that fits."""
    sizes = [1_500_000, 2_000_000, 10, 10, 700_000, 800_000, 10]
    rows = {uuid.uuid4(): size for size in sizes}
    found = [page.Found(row_id, str(at), rows[row_id]) for at, row_id in enumerate(rows)]
    gone = {found[3].id}
    asked: list[list[int]] = []

    async def read(ids: list[uuid.UUID]) -> list[SimpleNamespace]:
        asked.append([rows[row_id] for row_id in ids])
        return [SimpleNamespace(id=row_id) for row_id in ids if row_id not in gone]

    async def cut(size: int) -> tuple[list[int], list[page.PageKey] | None]:
        asked.clear()
        pages = Pages("ListTexts", SimpleNamespace(page_size=size, page_token=""))
        shown, token = await pages.cut_found(
            found[: pages.limit],
            read=read,
            encode=lambda row: StringValue(value="x" * rows[row.id]),
        )
        key = page.decode_token(token, "ListTexts", page.filter_digest(), CALLER)
        return [len(each.value) for each in shown], key

    with caller_scope(CALLER):
        assert ([1_500_000, 2_000_000, 10], ["2", found[2].id]) == await cut(7)
        assert [[1_500_000], [2_000_000], [10, 10, 700_000]] == asked
        assert ([1_500_000], ["0", found[0].id]) == await cut(1)
        assert [[1_500_000]] == asked
        # The last row of the page is gone: the page is shorter and goes on behind it all the same.
        assert ([1_500_000, 2_000_000, 10], ["3", found[3].id]) == await cut(4)
        found[:] = found[4:]
        assert ([700_000, 800_000, 10], None) == await cut(7)
        assert [[700_000], [800_000, 10]] == asked
        found.clear()
        assert ([], None) == await cut(7)


def test_parts_are_cut_by_number_and_bytes_and_lose_nothing() -> None:
    texts = [StringValue(value="x" * size) for size in (10, 10, 10, 500, 10, 10)]
    parts = [*in_parts(iter(texts), limit=2, bytes_max=100)]
    assert [len(part) for part in parts] == [2, 1, 1, 2]
    assert texts == [text for part in parts for text in part]
    assert [*in_parts([], limit=2, bytes_max=100)] == [[]]


def test_the_parts_of_a_filter_do_not_run_together() -> None:
    assert page.filter_digest("ab", "c") != page.filter_digest("a", "bc")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "{0190d6c1-5f2e-7c3a-9d5b-1f0e2d3c4b5a}",
        "urn:uuid:0190d6c1-5f2e-7c3a-9d5b-1f0e2d3c4b5a",
        "0190d6c15f2e7c3a9d5b1f0e2d3c4b5a",
        "0190d6c1-5f2e-7c3a-9d5b-1f0e2d3c4b5a\n",
        "\N{ARABIC-INDIC DIGIT ZERO}190d6c1-5f2e-7c3a-9d5b-1f0e2d3c4b5a",
    ],
)
def test_an_id_in_another_form_is_refused_with_its_field(text: str) -> None:
    """B17, B18, B20."""
    with pytest.raises(InvalidArgument) as caught:
        codec.uuid_from(text, field="node_id")
    assert caught.value.fields[0].field == "node_id"


def test_an_id_in_upper_case_is_the_same_id() -> None:
    """B20."""
    text = "0190D6C1-5F2E-7C3A-9D5B-1F0E2D3C4B5A"
    assert text.lower() == str(codec.uuid_from(text, field="id"))
    assert uuid.UUID(int=0) == codec.uuid_from(str(uuid.UUID(int=0)), field="id")
    assert None is codec.uuid_or_none("", field="id")


@given(st.datetimes(timezones=st.just(UTC)))
def test_moments_survive_the_wire_to_the_microsecond(moment: datetime) -> None:
    encoded = codec.timestamp(moment)
    assert encoded is not None
    whole = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=encoded.seconds)
    assert moment == whole + timedelta(microseconds=encoded.nanos // 1000)


def test_absurd_spans_are_refused() -> None:
    with pytest.raises(InvalidArgument):
        codec.milliseconds_from(Duration(seconds=-1), field="timeout")
    assert codec.milliseconds_from(Duration(seconds=1, nanos=500_000_000), field="timeout") == 1500
    encoded = codec.duration_ms(1500.25)
    assert encoded is not None
    assert timedelta(milliseconds=1500.25) == encoded.ToTimedelta()


def test_settings_name_the_variable_and_never_its_content() -> None:
    given = {"A": "secret", "EMPTY": "", "N": "7", "S": "1.5", "ON": "yes"}
    assert (
        env.integer(given, "N", 1),
        env.seconds(given, "S", 1),
        env.flag(given, "ON"),
    ) == (7, 1.5, True)
    assert (env.text(given, "EMPTY", "x"), env.optional(given, "EMPTY")) == ("x", None)
    for read in (
        lambda: env.required(given, "EMPTY"),
        lambda: env.integer(given, "A", 1),
        lambda: env.integer(given, "N", 1, high=6),
        lambda: env.seconds(given, "A", 1),
        lambda: env.flag(given, "A"),
        lambda: env.path(given, "EMPTY"),
    ):
        with pytest.raises(env.EnvError) as caught:
            read()
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:1", True),
        ("127.8.8.8:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("localhost.example.com:1", False),
        (":1", False),
    ],
)
def test_only_this_machine_is_loopback(address: str, *, expected: bool) -> None:
    assert expected == is_loopback(address)


def test_who_acts_outside_of_any_call_is_told_so() -> None:
    with pytest.raises(Unauthenticated) as refused:
        current_caller()
    assert "NO_CALLER" == refused.value.reason
