"""Tags as they are shown on what they are tied to."""

from __future__ import annotations

from dataclasses import dataclass

import orjson


@dataclass(frozen=True, slots=True)
class AttachedTag:
    """A tag that a node or a workflow has."""

    id: str
    name: str
    color: str  # `#rrggbb`, or empty


def attached_from_json(text: str | None) -> tuple[AttachedTag, ...]:
    """Read what the statements of nodes and workflows give: rows of id, name and color."""
    if text is None:
        return ()
    return tuple(
        AttachedTag(tag_id, name, color or "") for tag_id, name, color in orjson.loads(text)
    )
