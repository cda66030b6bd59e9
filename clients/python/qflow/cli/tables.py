"""Tables for windows of any width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from rich.cells import cell_len
from rich.console import Console, Group
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import RenderableType

# Ids are for copying: never wrapped.
_WHOLE: Final = frozenset({"id", "run", "backup"})
_ID_CHARS: Final = 36
# Short words, which are kept in narrow windows; bars shrink instead.
_SHORT: Final = frozenset({"state", "took"})
_GAP: Final = 2


def table(*titles: str, right: Sequence[str] = ()) -> Table:
    """Return an empty table."""
    made = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for title in titles:
        whole = title in _WHOLE
        made.add_column(
            title,
            justify="right" if title in right else "left",
            overflow="fold" if not whole else "ignore",
            no_wrap=whole or title in _SHORT,
            min_width=_ID_CHARS if whole else None,
        )
    return made


def listed(
    out: Console,
    titles: Sequence[str],
    rows: Sequence[Sequence[str | Text]],
    *,
    right: Sequence[str] = (),
) -> RenderableType:
    """Return a table of rows; in a narrow window, ids are above the other columns."""
    cells = [[Text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    made = table(*titles, right=right)
    for row in cells:
        made.add_row(*row)
    needed = Measurement.get(out, out.options.update(max_width=10**6), made).maximum
    if needed <= out.width or titles[0] not in _WHOLE:
        return made
    heads = [Text(title, style="bold") for title in titles]
    widths = _widths([heads[1:], *(row[1:] for row in cells)], room=out.width - _GAP)
    parts: list[RenderableType] = []
    for head, *rest in (heads, *cells):
        line = table(*titles[1:], right=right)
        line.show_header = False
        for column, width in zip(line.columns, widths, strict=True):
            column.width, column.min_width, column.no_wrap = width, None, False
        line.add_row(*rest)
        parts += [head, Padding(line, (0, 0, 0, _GAP))]
    return Group(*parts)


def _widths(rows: Sequence[Sequence[Text]], *, room: int) -> list[int]:
    """Return the width of each column; if there is too little room, the widest shrink."""
    needed = [max(cell_len(cell.plain) for cell in column) for column in zip(*rows, strict=True)]
    widths = [min(each, room) for each in needed]
    while sum(widths) + _GAP * (len(widths) - 1) > room and max(widths) > 1:
        widths[widths.index(max(widths))] -= 1
    return widths
