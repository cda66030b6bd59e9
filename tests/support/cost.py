"""What code costs the processor, told as a quick machine's time whatever hour it is.

Seconds of a processor do less in an hour in which others share it. How many times a fixed piece of
work fits into them stays, so that a limit is a promise about the code and no bet on the machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

_TURNS: Final = 15_000
_TRIES: Final = 5


@dataclass(slots=True)
class Cost:
    """Milliseconds of a processor that does the fixed piece of work in one."""

    ms: float = math.inf


@contextmanager
def counted() -> Iterator[Cost]:
    """Count what this process works in the block, in all its threads."""
    cost = Cost()
    before_s = _fixed_work_s()
    began_s = time.process_time()
    yield cost
    worked_s = time.process_time() - began_s
    # The slower of both: the hour may have changed meanwhile.
    cost.ms = worked_s / max(before_s, _fixed_work_s())


def _fixed_work_s() -> float:
    """Give what the fixed piece of work takes at present: the least of some tries."""
    return min(_try_s() for _ in range(_TRIES))


def _try_s() -> float:
    began_s = time.process_time()
    squares = [0] * 64
    for number in range(_TURNS):
        squares[number & 63] = number * number
    return time.process_time() - began_s
