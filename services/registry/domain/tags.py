"""Tags as shown on what they are attached to."""

from __future__ import annotations

from dataclasses import dataclass

import orjson


@dataclass(frozen=True, slots=True)
class AttachedTag:
    """A tag attached to a node or a workflow."""

    id: str
    name: str
    color: str  # `#rrggbb`, or empty


def attached_from_json(text: str | None) -> tuple[AttachedTag, ...]:
    """Parse the tags that statements on nodes and workflows return: rows of id, name and color."""
    if text is None:
        return ()
    return tuple(
        AttachedTag(tag_id, name, color or "") for tag_id, name, color in orjson.loads(text)
    )
