"""The sort order of a list: one field of a closed table, with the id as tie-breaker."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString

from services.kit.errors import FieldViolation, InvalidArgument

_ORDER: Final = re.compile(r" *([a-z_]{1,64})(?: +(asc|desc))? *")
_REASON: Final = "ORDER_BY_INVALID"


@dataclass(frozen=True, slots=True)
class OrderField:
    """A field that a list may be ordered by, and its column; neither is ever null."""

    name: str
    column: LiteralString
    sql_type: LiteralString
    key_type: type[str | datetime]


@dataclass(frozen=True, slots=True)
class Order:
    """A total order, since the id decides between equal values.

    Both are sorted in the same direction, so that one index serves either.
    """

    field: OrderField
    descending: bool

    @property
    def direction(self) -> LiteralString:
        """The direction in SQL."""
        return "DESC" if self.descending else "ASC"

    @property
    def beyond(self) -> LiteralString:
        """The operator by which a later row's key compares to that of the last row shown."""
        return "<" if self.descending else ">"


def order_from(text: str, fields: Sequence[OrderField], *, default: Order) -> Order:
    """Parse `create_time desc`; ascending by default, and an empty text is the default order."""
    if not text.strip(" "):
        return default
    names = ", ".join(each.name for each in fields)
    match = _ORDER.fullmatch(text)
    field = next((each for each in fields if match and each.name == match[1]), None)
    if match is None or field is None:
        said = f"must be one of {names}, alone or with asc or desc"
        raise InvalidArgument(
            _REASON,
            f"order_by {said}",
            fields=[FieldViolation("order_by", said, _REASON)],
            known_fields=names,
        )
    return Order(field, match[2] == "desc")
