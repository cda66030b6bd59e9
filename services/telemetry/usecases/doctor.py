"""The doctor: checks whether invariants hold, on a live deployment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import structlog

from services.kit.errors import InvalidArgument, ResourceExhausted, Unavailable
from services.kit.pg import Pool, translate
from services.telemetry.domain.invariant import Breach, Finding, Invariant, Verdict
from services.telemetry.storage.invariants import all_invariants, breaches

log = structlog.get_logger()


class Doctor:
    """Examines one database, one examination at a time, since a query may scan whole tables."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._busy = asyncio.Lock()
        self.settling = False

    async def examine(
        self, names: Sequence[str], *, rows_max: int, settle_s: float
    ) -> list[Finding]:
        """Check invariants by name or id, all if none is named; returns a finding for each.

        Raises ResourceExhausted while another examination runs. Violations of invariants that
        settle are confirmed by a second look `settle_s` seconds later.
        """
        asked = _chosen(names)
        if self._busy.locked():
            raise ResourceExhausted(
                "EXAMINATION_RUNNING",
                "another examination is running; try again",
                retry_after_s=5.0,
            )
        async with self._busy:
            findings = [await self._look(each, rows_max) for each in asked]
            doubtful = [
                each for each in findings if each.invariant.settles and each.verdict is _BROKEN
            ]
            if doubtful:
                self.settling = True
                await asyncio.sleep(settle_s)
                self.settling = False
                again = {
                    each.invariant.name: await self._confirm(each, rows_max) for each in doubtful
                }
                findings = [again.get(each.invariant.name, each) for each in findings]
        for each in findings:
            if each.verdict is not Verdict.HOLDS:
                log.warning(
                    "invariant_not_proven",
                    invariant=each.invariant.name,
                    verdict=each.verdict.value,
                    rows=len(each.breaches),
                )
        return findings

    async def _look(self, invariant: Invariant, rows_max: int) -> Finding:
        began = time.monotonic()
        try:
            found = await breaches(self._pool, invariant, limit=rows_max + 1)
        except Exception as error:
            fault = translate(error)
            if not (isinstance(fault, Unavailable) and fault.reason == "DATABASE_SLOW"):
                raise
            return Finding(
                invariant=invariant, verdict=Verdict.UNDECIDED, duration_ms=_ms_since(began)
            )
        return Finding(
            invariant=invariant,
            verdict=_BROKEN if found else Verdict.HOLDS,
            breaches=tuple(found[:rows_max]),
            has_more=len(found) > rows_max,
            duration_ms=_ms_since(began),
        )

    async def _confirm(self, before: Finding, rows_max: int) -> Finding:
        """Check again; only violations by the same rows as before count, others were transient."""
        now = await self._look(before.invariant, rows_max)
        if now.verdict is not _BROKEN or now.has_more:
            return now
        known = {_key(each) for each in before.breaches}
        lasting = tuple(each for each in now.breaches if _key(each) in known)
        return Finding(
            invariant=now.invariant,
            verdict=_BROKEN if lasting else Verdict.HOLDS,
            breaches=lasting,
            duration_ms=before.duration_ms + now.duration_ms,
        )


_BROKEN = Verdict.BROKEN


def _key(breach: Breach) -> tuple[str, str]:
    return breach.place, breach.what


def _chosen(names: Sequence[str]) -> list[Invariant]:
    known = all_invariants()
    for at, name in enumerate(names):
        if not any(name in (each.id, each.name) for each in known):
            raise InvalidArgument(
                "INVARIANT_UNKNOWN",
                f"there is no invariant {name!r}: leave the list empty for all, whose names are "
                "in the answer",
                field=f"invariants[{at}]",
            )
    return [each for each in known if not names or each.id in names or each.name in names]


def _ms_since(began: float) -> float:
    return (time.monotonic() - began) * 1000
