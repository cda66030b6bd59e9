from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qflow.types import (
    Type,
    VerdictKind,
    check_value,
    dump_exact,
    from_json,
    from_text,
    parse_strict,
    to_json,
    to_text,
    verdict,
)

from tests.unit.types.strategies import TYPES, chains, types, values_of

RELAXED = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.filter_too_much]
)


@RELAXED
@given(types(opaque=True))
def test_every_type_is_assignable_to_itself(of: Type) -> None:
    assert verdict(of, of).kind == VerdictKind.EXACT


@RELAXED
@given(types(opaque=True))
def test_a_type_survives_its_structural_form(of: Type) -> None:
    assert of == from_json(to_json(of))
    assert of == from_json(json.loads(json.dumps(to_json(of))))
    assert of == from_text(to_text(of))


@settings(RELAXED, max_examples=400)
@given(chains())
def test_without_conversions_assignability_is_transitive(chain: tuple[Type, Type, Type]) -> None:
    plain = {VerdictKind.EXACT, VerdictKind.WIDENING}
    first, second, third = chain
    if verdict(first, second).kind in plain and verdict(second, third).kind in plain:
        assert verdict(first, third).kind in plain


@RELAXED
@given(st.data(), TYPES)
def test_a_value_of_a_type_passes_its_check(data: st.DataObject, of: Type) -> None:
    assert check_value(of, data.draw(values_of(of))) is None


@settings(RELAXED, max_examples=300)
@given(st.data(), chains())
def test_exact_and_widening_hold_for_every_value(
    data: st.DataObject, chain: tuple[Type, Type, Type]
) -> None:
    source, target, _ = chain
    if verdict(source, target).kind in {VerdictKind.EXACT, VerdictKind.WIDENING}:
        assert check_value(target, data.draw(values_of(source))) is None


@settings(RELAXED, max_examples=300)
@given(TYPES, TYPES)
def test_a_counter_example_is_of_the_source_and_is_refused(source: Type, target: Type) -> None:
    said = verdict(source, target)
    if said.counter_example is not None:
        value = parse_strict(said.counter_example)
        assert check_value(source, value) is None
        assert check_value(target, value) is not None


@settings(RELAXED, max_examples=300)
@given(TYPES, TYPES)
def test_what_is_said_to_mend_an_edge_does(source: Type, target: Type) -> None:
    said = verdict(source, target)
    assert not (said.fits and said.mended_by)
    for method in said.mended_by:
        assert verdict(source, target, method).kind == VerdictKind.CONVERSION


@RELAXED
@given(st.data(), TYPES)
def test_a_value_survives_its_text(data: st.DataObject, of: Type) -> None:
    value = data.draw(values_of(of))
    assert value == parse_strict(dump_exact(value))


@pytest.mark.parametrize("conversion", ["", "int_to_float", "json_to_value", "no_such_thing"])
def test_a_verdict_never_raises(conversion: str) -> None:
    @settings(RELAXED, max_examples=100)
    @given(types(opaque=True), types(opaque=True))
    def judge(source: Type, target: Type) -> None:
        assert verdict(source, target, conversion).kind in VerdictKind

    judge()
