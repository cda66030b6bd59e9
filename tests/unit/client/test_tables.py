"""Rows under titles, in windows of any width."""

from __future__ import annotations

import io
import uuid

import pytest
from qflow.cli.tables import listed
from rich.console import Console

TITLES = ("id", "name", "when", "state")
IDS = [str(uuid.UUID(int=at)) for at in range(3)]
ROWS = [(each, "[b]nightly[/b]", "30 7 * * * Europe/Berlin", "on") for each in IDS]


def shown(width: int) -> list[str]:
    out = Console(
        file=io.StringIO(), force_terminal=True, color_system=None, soft_wrap=True, width=width
    )
    out.print(listed(out, TITLES, ROWS))
    assert isinstance(out.file, io.StringIO)
    return [line.rstrip() for line in out.file.getvalue().splitlines()]


def test_where_there_is_room_a_row_is_a_line() -> None:
    lines = shown(90)
    assert 1 + len(ROWS) == len(lines)
    assert list(TITLES) == lines[0].split()
    assert f"{IDS[0]}  [b]nightly[/b]  30 7 * * * Europe/Berlin  on" == lines[1]


def test_in_a_narrow_window_an_id_stands_above_what_is_said_of_it() -> None:
    lines = shown(60)
    assert ["id", "  name            when                      state"] == lines[:2]
    assert [IDS[0], "  [b]nightly[/b]  30 7 * * * Europe/Berlin  on", IDS[1]] == lines[2:5]
    assert 2 + 2 * len(ROWS) == len(lines)


@pytest.mark.parametrize("width", [20, 36, 40])
def test_what_does_not_fit_a_line_is_folded_and_ids_are_not(width: int) -> None:
    lines = shown(width)
    assert [each for each in lines if each in IDS] == IDS
    assert all(len(each) <= width for each in lines if each not in IDS)
    assert "Berlin" in "".join(lines).replace(" ", "")


def test_a_list_of_nothing_has_its_titles() -> None:
    out = Console(file=io.StringIO(), width=80)
    out.print(listed(out, TITLES, []))
    assert isinstance(out.file, io.StringIO)
    assert list(TITLES) == out.file.getvalue().split()
