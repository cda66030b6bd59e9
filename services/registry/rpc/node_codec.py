"""Codec for nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from qflow.registry.v1 import node_pb2 as pb

from services.kit.rpc import codec
from services.registry.domain.source import Diagnostic, Output, Parameter
from services.registry.rpc.tag_codec import attached_to_pb
from services.registry.rpc.type_texts import type_texts
from services.registry.storage.nodes import Node
from services.registry.storage.versions import Version

_LOCK_STATES: Final = {
    "none": pb.LOCK_STATE_NONE,
    "pending": pb.LOCK_STATE_PENDING,
    "locked": pb.LOCK_STATE_LOCKED,
    "failed": pb.LOCK_STATE_FAILED,
}
_KINDS: Final = {
    "positional": pb.PARAMETER_KIND_POSITIONAL,
    "keyword": pb.PARAMETER_KIND_KEYWORD,
}


def node_to_pb(
    node: Node, diagnostics: Sequence[Diagnostic] = (), *, with_code: bool = True
) -> pb.Node:
    """Encode a node; a validated-only one has no id."""
    exists = node.id.int != 0
    return pb.Node(
        id=str(node.id) if exists else "",
        name=node.name,
        description=node.description,
        code=node.code if with_code else "",
        main_function=node.main_function,
        is_async=node.is_async,
        python_version=node.python_version,
        inputs=[_input(each) for each in node.inputs],
        outputs=[_output(each) for each in node.outputs],
        requirements=[
            pb.Requirement(
                specifier=each.requirement, provenance=each.source, import_name=each.import_name
            )
            for each in node.requirements
        ],
        lock_state=_LOCK_STATES[node.lock_state],
        lock_error=node.lock_error,
        version=node.version,
        version_id=str(node.version_id) if exists else "",
        etag=node.etag if exists else "",
        diagnostics=[
            pb.Diagnostic(
                code=each.code,
                message=each.message,
                hint=each.hint,
                line=each.line,
                column=each.column,
            )
            for each in diagnostics
        ],
        created_by=str(node.created_by),
        create_time=codec.timestamp(node.created_at) if exists else None,
        update_time=codec.timestamp(node.updated_at) if exists else None,
        delete_time=codec.timestamp(node.deleted_at) if node.deleted_at else None,
        is_public=node.is_public,
        is_template=node.is_template,
        tags=attached_to_pb(node.tags),
        cloned_from=_origin(node.cloned_from),
        kind=pb.NODE_KIND_PYTHON,
    )


def _input(each: Parameter) -> pb.Parameter:
    text, shown = type_texts(each.type)
    return pb.Parameter(
        name=each.name,
        type_expression=shown,
        type_json=text,
        kind=_KINDS[each.kind],
        required=each.required,
        default_json=each.default_json or "",
    )


def _output(each: Output) -> pb.OutputField:
    text, shown = type_texts(each.type)
    return pb.OutputField(name=each.name, type_expression=shown, type_json=text)


def _origin(model: tuple[UUID, int] | None) -> pb.NodeOrigin | None:
    return None if model is None else pb.NodeOrigin(node_id=str(model[0]), version=model[1])


def node_version_to_pb(version: Version[Node], *, with_code: bool) -> pb.NodeVersion:
    """Encode one version of a node."""
    return pb.NodeVersion(
        node=node_to_pb(version.shown, with_code=with_code),
        author=str(version.author),
        create_time=codec.timestamp(version.made_at),
    )
