from __future__ import annotations

import psycopg
from qflow.types import LOSSLESS, SCALARS, VerdictKind, verdict


def test_the_seeded_matrix_says_what_the_module_says(sql: psycopg.Connection) -> None:
    """B40: one answer, whoever is asked."""
    rows = sql.execute(
        "SELECT s.name, t.name, c.is_compatible, c.conversion_method, c.is_lossless"
        "  FROM type_compatibility c"
        "  JOIN type_definitions s ON s.id = c.source_type_id"
        "  JOIN type_definitions t ON t.id = c.target_type_id"
    ).fetchall()
    scalars = [row for row in rows if row[0] in SCALARS and row[1] in SCALARS]
    assert scalars
    differences = []
    for source, target, compatible, method, lossless in scalars:
        said = verdict(SCALARS[source], SCALARS[target], "" if method in LOSSLESS else method or "")
        expected = (compatible, method or "", lossless if compatible else said.lossless)
        found = (said.fits, said.method, said.lossless)
        if said.kind is VerdictKind.REFUTED:
            found = (False, method or "", said.lossless)
        if expected != found:
            differences.append((source, target, expected, found, said.reason))
    assert differences == []
