"""Codec for tags."""

from __future__ import annotations

from collections.abc import Iterable

from qflow.registry.v1 import tag_pb2

from services.kit.rpc import codec
from services.registry.domain.tags import AttachedTag
from services.registry.storage.tags import Tag


def attached_to_pb(attached: Iterable[AttachedTag]) -> list[tag_pb2.AttachedTag]:
    """Encode the tags of a node or a workflow."""
    return [tag_pb2.AttachedTag(id=each.id, name=each.name, color=each.color) for each in attached]


def tag_to_pb(tag: Tag, kind: tag_pb2.TagKind.ValueType) -> tag_pb2.Tag:
    """Encode a tag; a validated-only one has no id."""
    exists = tag.id.int != 0
    return tag_pb2.Tag(
        id=str(tag.id) if exists else "",
        kind=kind,
        name=tag.name,
        description=tag.description,
        color=tag.color,
        created_by=str(tag.created_by),
        create_time=codec.timestamp(tag.created_at) if exists else None,
    )
