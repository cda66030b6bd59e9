"""Conversion between values and their JSON in the tables, which other services read too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import orjson
from qflow.types import ANY, Type, from_json, to_json

from services.registry.domain.definition import (
    MEMORY_BYTES_DEFAULT,
    TIMEOUT_MS_DEFAULT,
    Connection,
    Definition,
    InputSpec,
    Retry,
    Signature,
    WorkflowInput,
    WorkflowNode,
    WorkflowOutput,
)
from services.registry.domain.definition import (
    Parameter as TemplateParameter,
)
from services.registry.domain.node_limits import NodeLimits
from services.registry.domain.requirements import Requirement
from services.registry.domain.source import Output, Parameter
from services.registry.domain.stored_constructs import constructs_from_json, constructs_to_json

Json = dict[str, Any]


def inputs_to_json(inputs: Sequence[Parameter]) -> list[Json]:
    """Return the content of `python_nodes.input_types`."""
    return [
        {
            "name": each.name,
            "type": to_json(each.type),
            "kind": each.kind,
            "required": each.required,
            "default_json": each.default_json,
        }
        for each in inputs
    ]


def inputs_from_json(stored: Sequence[Mapping[str, Any]]) -> tuple[Parameter, ...]:
    """Parse the result of `inputs_to_json`."""
    return tuple(
        Parameter(
            each["name"],
            from_json(each["type"]),
            each["kind"],
            each["required"],
            each["default_json"],
        )
        for each in stored
    )


def outputs_to_json(outputs: Sequence[Output]) -> list[Json]:
    """Return the content of `python_nodes.output_types`."""
    return [{"name": each.name, "type": to_json(each.type)} for each in outputs]


def outputs_from_json(stored: Sequence[Mapping[str, Any]]) -> tuple[Output, ...]:
    """Parse the result of `outputs_to_json`."""
    return tuple(Output(each["name"], from_json(each["type"])) for each in stored)


def requirements_to_json(requirements: Sequence[Requirement]) -> list[Json]:
    """Return the content of `python_nodes.dependencies`."""
    return [
        {
            "requirement": each.requirement,
            "source": each.source,
            "import_name": each.import_name,
        }
        for each in requirements
    ]


def requirements_from_json(stored: Sequence[Mapping[str, Any]]) -> tuple[Requirement, ...]:
    """Parse the result of `requirements_to_json`."""
    return tuple(
        Requirement(each["requirement"], each["source"], each["import_name"]) for each in stored
    )


def signature_from_texts(stored: Mapping[str, str]) -> Signature:
    """Parse the signature of a version, whose input and output types are JSON text."""
    return Signature(
        python_version=stored["python_version"],
        inputs={
            each["name"]: InputSpec(
                type=ANY if each["type"] is None else from_json(each["type"]),
                required=each["required"],
                default_json=each["default_json"],
            )
            for each in orjson.loads(stored["input_types"])
        },
        # A workflow's output has no type if its node was missing when the workflow was stored.
        outputs={
            each["name"]: ANY if each["type"] is None else from_json(each["type"])
            for each in orjson.loads(stored["output_types"])
        },
        is_workflow=bool(stored.get("is_workflow")),
        is_async=bool(stored.get("is_async")),
    )


def definition_to_json(definition: Definition) -> Json:
    """Return a graph as JSON; the keys are columns of `workflows`."""
    return {
        "nodes": [_node_to_json(each) for each in definition.nodes],
        "connections": [_connection_to_json(each) for each in definition.connections],
        "input_types": [
            {
                "name": each.name,
                "type": _type_to_json(each.type),
                "required": each.required,
                "default_json": each.default_json,
            }
            for each in definition.inputs
        ],
        "output_types": [
            {
                "name": each.name,
                "node_id": each.node,
                "output": each.output,
                "type": _type_to_json(each.type),
            }
            for each in definition.outputs
        ],
        "settings": _settings_to_json(definition),
    }


def _settings_to_json(definition: Definition) -> Json:
    """Return the settings of the whole graph: timeout, parameters, and the variables it reads."""
    settings: Json = {}
    if definition.timeout_ms is not None:
        settings["timeout_ms"] = definition.timeout_ms
    if definition.parameters:
        settings["parameters"] = [
            {
                "name": each.name,
                "type": _type_to_json(each.type),
                "description": each.description,
                "default_json": each.default_json,
            }
            for each in definition.parameters
        ]
    # Indexes the variables, so that finding their readers need not scan all nodes.
    if definition.variables:
        settings["variables"] = sorted(definition.variables)
    return settings


def definition_from_json(stored: Mapping[str, Any]) -> Definition:
    """Parse the result of `definition_to_json`."""
    settings = stored["settings"] or {}
    nodes, connections = graph_from_json(stored["nodes"], stored["connections"])
    return Definition(
        nodes=nodes,
        connections=connections,
        inputs=tuple(
            WorkflowInput(
                name=each["name"],
                type=_type_from_json(each["type"]),
                default_json=each["default_json"],
            )
            for each in stored["input_types"]
        ),
        outputs=tuple(
            WorkflowOutput(
                name=each["name"],
                node=each["node_id"],
                output=each["output"],
                type=_type_from_json(each["type"]),
            )
            for each in stored["output_types"]
        ),
        timeout_ms=settings.get("timeout_ms"),
        parameters=tuple(
            TemplateParameter(
                name=each["name"],
                type=_type_from_json(each["type"]),
                description=each["description"],
                default_json=each["default_json"],
            )
            for each in settings.get("parameters", ())
        ),
    )


def with_texts(
    definition: Definition, texts: Sequence[str], parameter_texts: Sequence[str]
) -> Definition:
    """Restore the types as the caller wrote them, which the stored form leaves out."""
    inputs = tuple(
        replace(each, type_text=text) for each, text in zip(definition.inputs, texts, strict=True)
    )
    parameters = tuple(
        replace(each, type_text=text)
        for each, text in zip(definition.parameters, parameter_texts, strict=True)
    )
    return replace(definition, inputs=inputs, parameters=parameters)


def graph_from_json(
    nodes: Sequence[Mapping[str, Any]], connections: Sequence[Mapping[str, Any]]
) -> tuple[tuple[WorkflowNode, ...], tuple[Connection, ...]]:
    """Parse the columns `nodes` and `connections` of a definition."""
    return tuple(_node_from_json(each) for each in nodes), tuple(
        _connection_from_json(each) for each in connections
    )


def _node_to_json(node: WorkflowNode) -> Json:
    # Keys unknown to the previous release are written only if they are used.
    bound: Json = {}
    if node.variables:
        bound["variables"] = dict(node.variables)
    if node.parameters:
        bound["template_parameters"] = dict(node.parameters)
    if limits := node.limits.as_json():
        bound["limits"] = limits
    return (
        bound
        | constructs_to_json(node)
        | {
            "id": node.id,
            "type": node.kind,
            "node_id": str(node.node_id),
            "version": node.version,
            "parameters": dict(node.literals),
            "retry": None if node.retry is None else retry_to_json(node.retry),
            "timeout_ms": node.timeout_ms,
            "memory_bytes": node.memory_bytes,
        }
    )


def retry_to_json(retry: Retry) -> Json:
    """Return a retry policy as JSON; lists of error types only if they are not empty."""
    stored: Json = {
        "max_retries": retry.max_retries,
        "initial_delay_ms": retry.initial_delay_ms,
        "factor": retry.factor,
        "max_delay_ms": retry.max_delay_ms,
        "jitter": retry.jitter,
    }
    if retry.retryable:
        stored["retryable"] = list(retry.retryable)
    if retry.non_retryable:
        stored["non_retryable"] = list(retry.non_retryable)
    return stored


def _retry_from_json(stored: Mapping[str, Any]) -> Retry:
    policy = dict(stored)
    retryable, useless = policy.pop("retryable", ()), policy.pop("non_retryable", ())
    return Retry(**policy, retryable=tuple(retryable), non_retryable=tuple(useless))


def _node_from_json(stored: Mapping[str, Any]) -> WorkflowNode:
    # Accepts everything that the orchestrator can run: an absent key means its default.
    retry = stored.get("retry")
    return WorkflowNode(
        id=stored["id"],
        node_id=UUID(stored["node_id"]),
        version=stored.get("version") or 0,
        literals=tuple((stored.get("parameters") or {}).items()),
        retry=None if retry is None else _retry_from_json(retry),
        timeout_ms=stored.get("timeout_ms") or TIMEOUT_MS_DEFAULT,
        memory_bytes=stored.get("memory_bytes") or MEMORY_BYTES_DEFAULT,
        variables=tuple(stored.get("variables", {}).items()),
        parameters=tuple(stored.get("template_parameters", {}).items()),
        limits=NodeLimits.from_json(stored.get("limits") or {}),
        **constructs_from_json(stored),
    )


def _connection_from_json(stored: Mapping[str, Any]) -> Connection:
    return Connection(
        source=stored["source"],
        source_output=stored["source_output"],
        target=stored["target"],
        target_input=stored["target_input"],
        conversion=stored.get("conversion", ""),
        verdict=stored.get("verdict", ""),
        kind=stored.get("kind", ""),
        branch=stored.get("branch", ""),
        absent=stored.get("absent", ""),
        source_type=_type_from_json(stored.get("source_type")),
        counter_example=stored.get("counter_example", ""),
    )


def _connection_to_json(edge: Connection) -> Json:
    # A refuted edge is only sent to another process of the registry, never stored.
    rare: Json = {"counter_example": edge.counter_example} if edge.counter_example else {}
    for key in ("kind", "branch", "absent"):
        if getattr(edge, key):
            rare[key] = getattr(edge, key)
    if edge.source_type is not None:
        rare["source_type"] = to_json(edge.source_type)
    return rare | {
        "source": edge.source,
        "source_output": edge.source_output,
        "target": edge.target,
        "target_input": edge.target_input,
        "conversion": edge.conversion,
        "verdict": edge.verdict,
    }


def _type_to_json(of: Type | None) -> Json | None:
    return None if of is None else to_json(of)


def _type_from_json(stored: object) -> Type | None:
    return None if stored is None else from_json(stored)
