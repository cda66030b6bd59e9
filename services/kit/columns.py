"""Arrays of column values, prepared for fast encoding by the driver."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

# Not worth it for arrays up to this length.
_ASKED_MAX: Final = 3
_ARRAYS: Final = (tuple, list)


class _Column:
    """A one-dimensional array.

    The driver iterates an array twice: first to check each element for being an array itself, which
    takes three times as long as encoding, then to encode it. The first iteration is empty here. If
    the driver ever changes that, the server rejects what it sends.
    """

    __slots__ = ("_asked", "_values")

    def __init__(self, values: Sequence[Any]) -> None:
        self._values = values
        self._asked = False

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        if self._asked:
            return iter(self._values)
        self._asked = True
        return iter(())


def flat(arguments: Sequence[Any]) -> Sequence[Any]:
    """Wrap long arrays among the arguments as one-dimensional.

    Either all arguments are arrays or none is, so only the first is checked.
    """
    if not arguments or type(arguments[0]) not in _ARRAYS:
        return arguments
    return [
        _Column(each) if type(each) in _ARRAYS and len(each) > _ASKED_MAX else each
        for each in arguments
    ]
