"""Inputs that a shell gives: what their type takes, and never what nobody meant."""

from __future__ import annotations

import enum
from pathlib import Path

import pytest
from qflow.authoring.annotations import type_of
from qflow.cli.inputs import inputs_of
from qflow.exceptions import AuthoringError
from qflow.types import ANY, SCALARS, from_json, to_json


class Tone(enum.Enum):
    LOW = 1


class Color(str, enum.Enum):  # noqa: UP042  # both ways of writing it are read
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 2


class Right(enum.Flag):
    READ = 1


class Mixed(enum.Enum):
    ONE = 1
    TWO = "two"


@pytest.mark.parametrize(
    ("of", "base"),
    [(Tone, "int"), (Color, "str"), (Level, "int"), (Right, "flag"), (Mixed, "object")],
)
def test_an_enum_is_read_in_the_form_that_a_workflow_is_stored_with(of: type, base: str) -> None:
    told = to_json(type_of(of))
    assert base == told["base"]
    assert type_of(of) == from_json(told)


@pytest.mark.parametrize(
    ("of", "text", "expected"),
    [
        ("decimal", "12.50", "12.50"),
        ("decimal", "12345678901234567890.123456789", "12345678901234567890.123456789"),
        ("decimal", '"1.0"', "1.0"),
        ("str", "01234", "01234"),
        ("str", "42", "42"),
        ("str", "null", "null"),
        ("str", '"quoted"', "quoted"),
        ("str", "[1,", "[1,"),
        ("int", "42", 42),
        ("date", "2026-01-01", "2026-01-01"),
    ],
)
def test_what_is_a_text_by_its_type_is_taken_as_it_is_written(
    of: str, text: str, expected: object
) -> None:
    assert {"x": expected} == inputs_of([f"x={text}"], "", {"x": SCALARS[of]})


def test_without_a_type_it_is_json_where_it_can_be() -> None:
    assert {"x": 12.5, "y": "a"} == inputs_of(["x=12.5", "y=a"], "")
    assert {"x": [1]} == inputs_of(["x=[1]"], '{"x": 7}', {"x": ANY})


@pytest.mark.parametrize("value", ['{"a":1,"a":2}', '[{"b":{"a":1,"a":2}}]', "[" * 100_000])
def test_what_can_be_meant_in_two_ways_or_in_none_is_refused(value: str) -> None:
    with pytest.raises(AuthoringError, match=r"'a' twice|nested too deeply"):
        inputs_of([f"x={value}"], "")
    with pytest.raises(AuthoringError, match=r"'a' twice|nested too deeply"):
        inputs_of([], f'{{"x":{value}}}')


def test_a_file_of_inputs_that_is_no_text_is_told_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "inputs.json"
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(AuthoringError, match="is not JSON in UTF-8"):
        inputs_of([], f"@{path}")
