"""The doctor's findings, as text for a terminal or as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Final

from services.telemetry.domain.invariant import Finding, Verdict

_MARKS: Final = {
    Verdict.HOLDS: "ok     ",
    Verdict.BROKEN: "BROKEN ",
    Verdict.UNDECIDED: "NO TIME",
}


def told(findings: Sequence[Finding]) -> str:
    """Return one line per invariant, its violations below it, and a summary."""
    return "\n".join([*_lines(findings), _sum(findings)])


def as_json(findings: Sequence[Finding]) -> str:
    """Return the findings as a JSON document, with the field names of `CheckInvariantsResponse`."""
    document = [
        {
            "invariant_id": each.invariant.id,
            "name": each.invariant.name,
            "title": each.invariant.title,
            "verdict": f"INVARIANT_VERDICT_{each.verdict.name}",
            "breaches": [
                {"place": breach.place, "key": breach.what, "facts": breach.facts}
                for breach in each.breaches
            ],
            "has_more": each.has_more,
            "query_time": f"{each.duration_ms / 1000:.6f}s",
        }
        for each in findings
    ]
    healthy = all(each.verdict is Verdict.HOLDS for each in findings)
    told = {"findings": document, "healthy": healthy}
    return json.dumps(told, ensure_ascii=False, indent=2)


def _lines(findings: Sequence[Finding]) -> Iterator[str]:
    for each in findings:
        invariant = each.invariant
        mark, took = _MARKS[each.verdict], f"{each.duration_ms:7.1f} ms"
        yield f"{mark} {invariant.id:<4} {took}  {invariant.title}"
        for breach in each.breaches:
            yield f"             {breach.place} {breach.what}: {breach.facts}"
        if each.has_more:
            yield f"             … and more; see them with: doctor {invariant.name} --rows 1000"


def _sum(findings: Sequence[Finding]) -> str:
    counts = {verdict: sum(each.verdict is verdict for each in findings) for verdict in Verdict}
    text = f"{counts[Verdict.HOLDS]} of {len(findings)} invariants hold"
    if counts[Verdict.BROKEN]:
        text += f", {counts[Verdict.BROKEN]} broken"
    if counts[Verdict.UNDECIDED]:
        text += f", {counts[Verdict.UNDECIDED]} undecided: the database took too long (--timeout)"
    return text
