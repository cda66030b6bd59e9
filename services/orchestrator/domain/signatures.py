"""The signatures of places of any kind, as edges see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from qflow.types import ANY, Type, from_json

from services.kit.graph_types import (
    BUILTIN_INPUTS,
    CHOICE,
    builtin_outputs,
    lists_of,
    mapped_output,
)
from services.orchestrator.domain.plan import NodeVersion


@dataclass(frozen=True, slots=True)
class Signature:
    """What edges need to know of a place."""

    inputs: Mapping[str, Type]
    required: tuple[str, ...]
    outputs: Mapping[str, Type]
    is_open: bool = False  # accepts any input


class Signatures:
    """The places of a definition. Graphs repeat few nodes many times: versions are decoded once."""

    def __init__(
        self, nodes: Mapping[str, Mapping[str, Any]], versions: Mapping[str, NodeVersion]
    ) -> None:
        self._nodes = nodes
        self._versions = versions
        self._read: dict[UUID, Signature] = {}
        self._seen: dict[str, Signature | None] = {}

    def of(self, name: str) -> Signature | None:
        """Return the signature of a place as edges see it; None if it is unknown."""
        if name not in self._seen:
            self._seen[name] = self._find(self._nodes.get(name, {}), self._versions.get(name))
        return self._seen[name]

    def _find(self, place: Mapping[str, Any], version: NodeVersion | None) -> Signature | None:
        if place.get("kind") in BUILTIN_INPUTS:
            return of_builtin(place)
        if version is None:
            return None
        inner = self._read.get(version.id)
        if inner is None:
            inner = self._read[version.id] = of_version(version)
        return as_seen(inner, place.get("map"))


def of_version(version: NodeVersion) -> Signature:
    """Return the signature of a node version."""
    return Signature(
        inputs={str(each["name"]): type_of(each["type"]) for each in version.input_types},
        required=tuple(str(each["name"]) for each in version.input_types if each["required"]),
        outputs={str(each["name"]): type_of(each["type"]) for each in version.output_types},
    )


def type_of(stored: object) -> Type:
    """Decode a type; a workflow's may have been unknown when it was stored."""
    return ANY if stored is None else from_json(stored)


def of_builtin(place: Mapping[str, Any]) -> Signature:
    """Return the signature of a built-in node; some state the type of their value."""
    kind = str(place["kind"])
    stated = (place.get(kind) or {}).get("type")
    return Signature(
        inputs=BUILTIN_INPUTS[kind],
        required=(),
        outputs=builtin_outputs(kind, None if stated is None else from_json(stated)),
        is_open=kind == CHOICE,
    )


def as_seen(inner: Signature, mapped: Mapping[str, Any] | None) -> Signature:
    """Return a signature as edges see it: a map takes a list and returns lists."""
    if not mapped:
        return inner
    depth, name = int(mapped.get("depth") or 1), str(mapped["input"])
    tolerates = bool(mapped.get("max_failed") or mapped.get("max_failed_ratio"))
    inputs = dict(inner.inputs)
    if name in inputs:
        inputs[name] = lists_of(inputs[name], depth)
    return Signature(
        inputs=inputs,
        required=tuple(dict.fromkeys((*inner.required, name))),
        outputs={
            key: mapped_output(of, depth, tolerates=tolerates) for key, of in inner.outputs.items()
        },
    )
