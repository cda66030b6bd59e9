"""Many rows turned into columns, as the driver takes them for arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

# Of fewer the driver may ask what it likes: that costs no more than to keep it from it.
_ASKED_MAX: Final = 3
_ARRAYS: Final = (tuple, list)


class _Column:
    """An array without arrays in it.

    The driver goes through an array twice. First it asks of each element whether that is an array
    itself, which takes three times as long as to write it, and then it writes them. Here it finds
    nothing to ask; should it ever go about it in another way, the server refuses what it sends.
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
    """Make of the arguments that are long arrays what is written as flat ones.

    All are arrays, or none is: that the first one tells.
    """
    if not arguments or type(arguments[0]) not in _ARRAYS:
        return arguments
    return [
        _Column(each) if type(each) in _ARRAYS and len(each) > _ASKED_MAX else each
        for each in arguments
    ]
