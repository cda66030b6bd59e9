"""What user code does at each place of each run: known before the run starts, whoever runs it."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final
from uuid import UUID

_DRAWN: Final = 1021  # scripts of a policy; a prime, as what picks one is a checksum
_POISON: Final = 99


@dataclass(frozen=True, slots=True)
class Script:
    """What the attempts at one place, element or turn do, one after another."""

    failures: int = 0  # that come before it succeeds
    fatal: bool = False  # they forbid a retry
    kills: int = 0  # runners that it takes with it before it answers
    lasts_s: float = 0.05

    def dooms(self, max_retries: int) -> bool:
        """Whether it never succeeds, however often it may be tried."""
        return self.failures > (0 if self.fatal else max_retries) or self.kills >= _POISON


def script_of(seed: int, run_id: UUID, node_id: str, max_retries: int) -> Script:
    """Give what a row's attempts do."""
    number = zlib.crc32(node_id.encode(), zlib.crc32(run_id.bytes, seed))
    return _scripts(max_retries)[number % _DRAWN]


@cache
def _scripts(max_retries: int) -> Sequence[Script]:
    chance = random.Random(f"scripts {max_retries}")
    return [_draw(chance, max_retries) for _ in range(_DRAWN)]


def _draw(chance: random.Random, max_retries: int) -> Script:
    """Draw what a place does; most do as they should."""
    lasts_s = chance.choice((0.0, 0.001, 0.02, 0.1, 0.4)) * (0.5 + chance.random())
    roll = chance.random()
    for share, script in (
        (0.84, Script(lasts_s=lasts_s)),
        (0.95, Script(failures=chance.randint(0, max_retries), lasts_s=lasts_s)),
        (0.965, Script(failures=max_retries + 1, lasts_s=lasts_s)),
        (0.975, Script(failures=1, fatal=True, lasts_s=lasts_s)),
        (0.99, Script(kills=1, lasts_s=lasts_s)),
        (0.992, Script(kills=_POISON, lasts_s=lasts_s)),
    ):
        if roll < share:
            return script
    return Script(lasts_s=2.0)
