"""Check a definition: all faults at once, each with its place, and a verdict per edge.

All traversals are iterative, so that a chain of 10,000 nodes does not exhaust the stack.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from qflow.types import Type

from services.registry.domain.checks.absence import absence_of, absent_values
from services.registry.domain.checks.conditions import conditions
from services.registry.domain.checks.constructs import constructs
from services.registry.domain.checks.edges import ends, verdicts
from services.registry.domain.checks.inputs import inputs
from services.registry.domain.checks.order import order
from services.registry.domain.checks.outputs import missing_inputs, outputs, unreachable
from services.registry.domain.checks.pickles import pickles
from services.registry.domain.checks.places import places, settings
from services.registry.domain.checks.state import Check
from services.registry.domain.checks.together import together
from services.registry.domain.checks.waits import read_types, same_names
from services.registry.domain.definition import (
    CONNECTIONS_MAX,
    ERROR,
    INFO,
    NODES_MAX,
    WARNING,
    Checked,
    Definition,
    Signatures,
)
from services.registry.domain.type_size import type_size

FINDINGS_MAX: Final = 1_000
# Limits the types in a response besides the graph itself: the largest star has 10,000 outputs.
TYPE_PARTS_MAX: Final = 50_000
_RANK: Final = {ERROR: 0, WARNING: 1, INFO: 2}
_NO_VARIABLES: Final[Mapping[str, Type]] = {}


def check(
    definition: Definition,
    signatures: Signatures,
    variables: Mapping[str, Type] = _NO_VARIABLES,
) -> Checked:
    """Check a definition against the versions of its nodes; returns it filled in, with findings.

    Filled in are conversions, verdicts, values for absent outputs, and the types of inputs,
    outputs, parameters and waits. Errors prevent storing, warnings prevent activation. `variables`
    are the types of those that the definition would read.
    """
    run = Check(definition, signatures)
    run.bindings.variables = variables
    if len(definition.nodes) > NODES_MAX:
        run.error("nodes", "TOO_MANY_NODES", f"has more than {NODES_MAX} nodes")
    if len(definition.connections) > CONNECTIONS_MAX:
        message = f"has more than {CONNECTIONS_MAX} edges"
        run.error("connections", "TOO_MANY_CONNECTIONS", message)
    if run.findings:
        return Checked(definition, tuple(run.findings))
    filled = _filled(run)
    ordered = sorted(run.findings, key=lambda each: _RANK[each.severity])[:FINDINGS_MAX]
    return Checked(filled, tuple(ordered))


def _filled(run: Check) -> Definition:
    given = run.definition
    settings(run)
    parameters = run.bindings.declare(given)
    run.definition = definition = replace(given, nodes=read_types(run))
    places(run)
    run.bindings.unused(definition)
    ends(run)
    constructs(run)
    same_names(run)
    together(run)
    taken = inputs(run)
    pickles(run)
    given_types = {each.name: each.type for each in taken if each.type is not None}
    conditions(run, given_types)
    connections = verdicts(run, given_types)
    ordered = order(run)
    absence = None
    if ordered is not None:
        absence = absence_of(run, ordered)
        connections = absent_values(run, absence, connections)
    shown = outputs(run, absence)
    missing_inputs(run)
    unreachable(run, shown)
    types = [each.type for each in taken] + [each.type for each in shown]
    types += [each.type for each in parameters]
    if sum(type_size(of) for of in types if of is not None) > TYPE_PARTS_MAX:
        message = (
            f"the types of inputs, outputs and parameters have more than {TYPE_PARTS_MAX} parts"
            " in all"
        )
        hint = "declare fewer outputs, or use plainer types"
        run.error("outputs", "TYPES_TOO_LARGE", message, hint)
        return given
    return replace(
        definition,
        connections=connections,
        inputs=taken,
        outputs=shown,
        parameters=parameters,
    )
