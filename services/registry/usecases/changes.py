"""What changing a node and changing a workflow have in common: whose it is, and what it was."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, TypeVar
from uuid import UUID

from services.kit.caller import Caller
from services.kit.errors import (
    Conflict,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)
from services.kit.pg import Db
from services.registry.storage import nodes, workflows
from services.registry.storage.nodes import Node
from services.registry.storage.workflows import Workflow

T = TypeVar("T", Node, Workflow)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(Generic[T]):
    """What is changed: its name to people, and how one is read and held."""

    name: str
    get: Callable[[Db, UUID], Awaitable[T | None]]
    lock: Callable[[Db, UUID], Awaitable[bool]]


NODE: Final[Kind[Node]] = Kind(
    name="node", get=partial(nodes.get_node, with_code=False), lock=nodes.lock_node
)
WORKFLOW: Final[Kind[Workflow]] = Kind(
    name="workflow",
    get=partial(workflows.get_workflow, with_graph=False),
    lock=workflows.lock_workflow,
)


async def hold(db: Db, kind: Kind[T], thing_id: UUID, *, etag: str = "") -> T:
    """Lock one until the transaction ends, as its etag says it is; gives it, deleted or not."""
    held = await kind.lock(db, thing_id)
    current = await kind.get(db, thing_id)
    if current is None:
        raise not_found(kind.name, thing_id)
    if not held:
        raise _not_yours(kind.name)
    check_etag(kind.name, current, etag)
    return current


def check_changeable(kind: str, thing: Node | Workflow, caller: Caller, *, etag: str) -> None:
    """Raise unless the caller may change it, it is not deleted, and it is what the etag says."""
    if thing.tenant_id != caller.tenant_id:
        raise _not_yours(kind)
    check_etag(kind, thing, etag)
    check_live(kind, thing)


def check_live(kind: str, thing: Node | Workflow) -> None:
    """Raise where it is deleted: it is shown to its tenant, and stays as it is."""
    if thing.deleted_at is not None:
        raise FailedPrecondition(
            f"{kind.upper()}_DELETED",
            f"the {kind} is deleted; undelete it first",
            resource=(kind, str(thing.id)),
        )


def check_etag(kind: str, thing: Node | Workflow, etag: str) -> None:
    """Raise where it changed since the etag was read; an empty one says nothing."""
    if etag and etag != thing.etag:
        raise stale(kind, thing.etag)


def check_mask(mask: Sequence[str], known: Sequence[str]) -> None:
    """Raise unless the mask names some of the known fields, and no other."""
    if mask and all(name in known for name in mask):
        return
    description = f"must name some of {', '.join(known)}"
    raise InvalidArgument(
        "UPDATE_MASK_INVALID",
        f"update_mask {description}",
        fields=[FieldViolation("update_mask", description, "UPDATE_MASK_INVALID")],
    )


def stale(kind: str, current: str) -> Conflict:
    """Say that it changed meanwhile, and what its etag is now."""
    return Conflict(
        "ETAG_MISMATCH",
        f"the {kind} changed since it was read; read it again and repeat the change",
        etag=current,
    )


def not_found(kind: str, thing_id: UUID) -> NotFound:
    """Say that there is none that the caller may see."""
    return NotFound(
        f"{kind.upper()}_NOT_FOUND", f"there is no such {kind}", resource=(kind, str(thing_id))
    )


def _not_yours(kind: str) -> PermissionDenied:
    return PermissionDenied(
        "NOT_YOURS", f"this {kind} may be read and run, not changed; clone it to change the copy"
    )
