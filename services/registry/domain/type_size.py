"""The size of a type, which determines the cost of parsing, comparing and writing it."""

from __future__ import annotations

from qflow.types import Enum, Literal, Type
from qflow.types.model import parts


def type_size(of: Type) -> int:
    """Count the parts of a type, including each constant of a literal or an enum."""
    count, stack = 0, [of]
    while stack:
        here = stack.pop()
        count += 1 + (len(here.keys) if isinstance(here, Literal | Enum) else 0)
        stack.extend(parts(here))
    return count
