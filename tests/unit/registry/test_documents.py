"""Texts: what is written is read back, in YAML and in JSON, whatever stands in it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qflow.types import from_text

from services.registry.domain.document import (
    DocumentError,
    Number,
    Plain,
    plain,
    read_json,
    to_json,
    to_json_lines,
)
from services.registry.domain.exact_values import exact, text_of
from services.registry.domain.exchange import written
from services.registry.domain.exchange_reading import read
from services.registry.domain.text_diff import compare
from services.registry.domain.yaml_text import Inline, read_yaml, to_yaml

TRICKY = [
    "yes",
    "no",
    "null",
    "~",
    "1e5",
    "0x1f",
    ".5",
    "1_000",
    "<<",
    "=",
    "-",
    "#",
    "---",
    "|",
    "...",
    "?",
    "!t",
    "&a",
    "*a",
    "%d",
    "'",
    '"',
    "2024-01-01",
]
SPACED = [
    "- a",
    "a: b",
    "> x",
    "a\nb\n",
    "  a\n b",
    "\n",
    "a \nb",
    "\ta",
    "x\n\n\n",
    "\u2028",
    "a\x85b",
    "\ufeffa",
    "\r\n",
    "😀\n",
    "? a",
    "a #b",
    " ",
    "",
]
TEXTS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30
) | st.sampled_from([*TRICKY, *SPACED])
NUMBERS = st.integers().map(lambda n: Number(str(n))) | st.sampled_from(
    [Number(each) for each in ("-0.0", "1e+16", "1E5", "0.10")]
)
VALUES: st.SearchStrategy[Plain] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(TEXTS, inner, max_size=4)
        | st.dictionaries(TEXTS, inner, max_size=3).map(Inline)
    ),
    max_leaves=12,
)


@given(VALUES)
def test_what_is_written_is_read_back(value: Plain) -> None:
    assert value == plain(read_yaml(to_yaml(value)))
    assert value == plain(read_json(to_json_lines(value)))
    assert value == plain(read_json(to_json(value)))


@given(VALUES)
def test_json_is_what_every_reader_of_json_reads(value: Plain) -> None:
    assert json.loads(to_json(value)) == json.loads(to_json_lines(value))


@given(st.text(max_size=200))
def test_no_text_is_a_crash(text: str) -> None:
    for reader in (read_yaml, read_json):
        with contextlib.suppress(DocumentError):
            reader(text)


@pytest.mark.parametrize(
    "text",
    [
        *("1", "1.0", "1e0", "-0.0", '{"b":1,"a":[]}', '{ "a": 1}', '"\\u00e9"', '"é"', "[1, 2]"),
        *('{"$json":"1"}', '{"$json":1}', "[" * 60 + "]" * 60, '{"a":{"$json":"x"}}', "null"),
    ],
)
def test_a_value_keeps_its_exact_text(text: str) -> None:
    shown = exact(text)
    for told in (
        plain(read_yaml(to_yaml({"v": shown}))),
        plain(read_json(to_json_lines({"v": shown}))),
    ):
        assert isinstance(told, dict)
        assert text == text_of(told["v"])


def test_plain_values_are_shown_plainly() -> None:
    assert [Number("1"), {"a": "x"}] == exact('[1,{"a":"x"}]')
    assert {"$json": "[1, 2]"} == exact("[1, 2]")


@given(st.lists(TEXTS, max_size=8).map("\n".join), st.lists(TEXTS, max_size=8).map("\n".join))
def test_a_diff_holds_every_line_of_both(before: str, after: str) -> None:
    diff = compare(before, after, ("a", "b"))
    assert (diff.text == "") == (before == after)
    assert not diff.cut
    shown = diff.text.split("\n")[2:]
    gone = [line[1:] for line in shown if line.startswith("-")]
    come = [line[1:] for line in shown if line.startswith("+")]
    for lines, text in ((gone, before), (come, after)):
        assert set(lines) <= {*text.split("\n"), ""}


def test_a_diff_counts_from_the_beginning_and_shows_three_lines_around() -> None:
    before = "".join(f"{number}\n" for number in range(20))
    diff = compare(before, before.replace("\n10\n", "\nten\n"), ("1", "2"))
    assert diff.text == ("--- 1\n+++ 2\n@@ -8,7 +8,7 @@\n 7\n 8\n 9\n-10\n+ten\n 11\n 12\n 13\n")


def test_texts_that_share_nothing_are_compared_as_wholes_and_cut() -> None:
    """Two sources of a megabyte: without a bound, matching their lines takes minutes."""
    before, after = ("".join(f"{number}{end}\n" for number in range(150_000)) for end in "ab")
    diff = compare(before, after, ("1", "2"))
    assert diff.cut
    assert len(diff.text) <= 1024 * 1024


def test_the_text_of_the_guide_is_the_one_that_is_exported() -> None:
    guide = (Path(__file__).parents[3] / "docs/documents.md").read_text(encoding="utf-8")
    text = guide.split("```yaml\n")[1].split("```")[0]
    bundle = read(read_yaml(text)).bundle
    # The types of inputs are known once the workflow is checked.
    inputs = tuple(
        replace(each, type=from_text(each.type_text)) for each in bundle.definition.inputs
    )
    checked = replace(bundle, definition=replace(bundle.definition, inputs=inputs))
    assert text == to_yaml(written(checked))
