"""The definition of a run of a single node."""

from __future__ import annotations

from typing import Final

from services.orchestrator.domain.plan import Definition, NodeVersion

PLACE: Final = "node"


def definition_of(version: NodeVersion) -> Definition:
    """Return a definition with the inputs and outputs of the node.

    Inputs that are not given are not passed on, so that the node's defaults apply.
    """
    names = [str(each["name"]) for each in version.input_types]
    return Definition(
        workflow_id=None,
        version=None,
        nodes=[{"id": PLACE, "node_id": version.node_id and str(version.node_id)}],
        connections=[
            {"source": "", "source_output": name, "target": PLACE, "target_input": name}
            for name in names
        ],
        settings={},
        input_types=[
            {"name": each["name"], "type": each["type"], "required": each["required"]}
            for each in version.input_types
        ],
        output_types=[
            {"name": each["name"], "node_id": PLACE, "output": each["name"], "type": each["type"]}
            for each in version.output_types
        ],
    )
