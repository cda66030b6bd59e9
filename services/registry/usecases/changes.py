"""What changes of nodes and of workflows share: ownership, locking and etag checks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Final, Generic, Protocol, TypeVar
from uuid import UUID

from services.kit.caller import Caller
from services.kit.errors import (
    FailedPrecondition,
    NotFound,
    PermissionDenied,
)
from services.kit.ids import uuid7
from services.kit.pg import Db
from services.kit.updates import check_etag
from services.registry.storage import deletion, nodes, workflows
from services.registry.storage.nodes import Node
from services.registry.storage.workflows import Workflow

T = TypeVar("T", Node, Workflow)

NOBODY: Final = UUID(int=0)  # the id used when a call only validates


class Mark(Protocol):
    """Marks a locked node or workflow as deleted or not; returns its deletion and update times."""

    def __call__(
        self, db: Db, thing_id: UUID, /, *, deleted: bool
    ) -> Awaitable[tuple[datetime | None, datetime]]:
        """Set or clear the deletion mark."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(Generic[T]):
    """What is changed: its name for messages, and how to read, lock and mark one."""

    name: str
    get: Callable[[Db, UUID], Awaitable[T | None]]
    lock: Callable[[Db, UUID], Awaitable[bool]]
    mark: Mark


NODE: Final[Kind[Node]] = Kind(
    name="node",
    get=partial(nodes.get_node, with_code=False),
    lock=nodes.lock_node,
    mark=deletion.mark_node,
)
WORKFLOW: Final[Kind[Workflow]] = Kind(
    name="workflow",
    get=partial(workflows.get_workflow, with_graph=False),
    lock=workflows.lock_workflow,
    mark=deletion.mark_workflow,
)


async def hold(db: Db, kind: Kind[T], thing_id: UUID, *, etag: str = "") -> T:
    """Lock one until the transaction ends and check its etag; returns it, deleted or not.

    Raises NotFound if the caller cannot see it, PermissionDenied if it is another tenant's.
    """
    held = await kind.lock(db, thing_id)
    current = await kind.get(db, thing_id)
    if current is None:
        raise not_found(kind.name, thing_id)
    if not held:
        raise _not_yours(kind.name)
    check_etag(kind.name, current.etag, etag)
    return current


def check_changeable(kind: str, thing: Node | Workflow, caller: Caller, *, etag: str) -> None:
    """Raise unless the caller may change it, the etag matches and it is not deleted."""
    if thing.tenant_id != caller.tenant_id:
        raise _not_yours(kind)
    check_etag(kind, thing.etag, etag)
    check_live(kind, thing)


def copied(model: T, caller: Caller, *, name: str, validate_only: bool) -> T:
    """Return a private copy owned by the caller, at version 1; a validated-only copy has no id."""
    return replace(
        model,
        id=NOBODY if validate_only else uuid7(),
        version=1,
        current_version=1,
        name=name or model.name,
        tags=(),
        tenant_id=caller.tenant_id,
        created_by=caller.user_id,
        is_template=False,
        cloned_from=(model.id, model.version),
    )


def check_live(kind: str, thing: Node | Workflow) -> None:
    """Raise if it is deleted: a deleted one can be read by its tenant, but not changed."""
    if thing.deleted_at is not None:
        raise FailedPrecondition(
            f"{kind.upper()}_DELETED",
            f"the {kind} is deleted; undelete it first",
            resource=(kind, str(thing.id)),
        )


def not_found(kind: str, thing_id: UUID) -> NotFound:
    """Return the error for one that does not exist or that the caller cannot see."""
    return NotFound(
        f"{kind.upper()}_NOT_FOUND", f"there is no such {kind}", resource=(kind, str(thing_id))
    )


def _not_yours(kind: str) -> PermissionDenied:
    return PermissionDenied(
        "NOT_YOURS", f"this {kind} may be read and run, not changed; clone it to change the copy"
    )
