"""Every fault that a statement or the catalogue can show: there in the seed, mended here."""

from __future__ import annotations

import pytest

from tests.migrations import faults_of_access, faults_of_definition
from tests.migrations.faults import ALL, Fault
from tests.migrations.subject import TABLES, Subject, plain_row

assert faults_of_access, faults_of_definition
_IDS = [f"{fault.case}-{fault.what}" for fault in ALL]


@pytest.mark.parametrize("fault", ALL, ids=_IDS)
def test_the_migrated_schema_is_free_of(fault: Fault, mended: Subject) -> None:
    assert not fault.seen(mended)


@pytest.mark.parametrize("fault", [f for f in ALL if not f.literal], ids=lambda f: f.case)
def test_the_seed_has(fault: Fault, seed: Subject) -> None:
    assert fault.seen(seed)


@pytest.mark.parametrize("fault", [f for f in ALL if f.literal], ids=lambda f: f.case)
def test_the_seed_as_it_stands_has(fault: Fault, literal_seed: Subject) -> None:
    assert fault.seen(literal_seed)


# What rows and catalogue cannot show: S6 (backup is comments), S50 (a redundant text column stays),
# S51 (the order in which the runner writes).
_ELSEWHERE = {"S6", "S50", "S51"}


def test_every_fault_is_checked() -> None:
    assert {f"S{n}" for n in range(1, 57)} == {f.case for f in ALL if f.case[0] == "S"} | _ELSEWHERE


@pytest.mark.parametrize("table", sorted(TABLES))
def test_a_plain_row_is_taken_by_both(table: str, seed: Subject, mended: Subject) -> None:
    """Else a check above could see a refusal that has another reason."""
    for schema in (seed, mended):
        assert schema.takes(table, **plain_row(schema, table))
