"""Workflows: graphs, checked when stored, and drafts until they are complete."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import structlog
from qflow.types import Type

from services.kit.caller import Caller
from services.kit.errors import FailedPrecondition, FieldViolation, InvalidArgument, no_version
from services.kit.idempotency import Replayed, RequestKey, rehearse, replay, write_once
from services.kit.ids import uuid7
from services.kit.pg import Db, Pool, as_caller
from services.kit.updates import check_mask, stale
from services.registry.domain.definition import NODES_MAX, Checked, Definition, Finding
from services.registry.domain.texts import description_from, name_from
from services.registry.gateways.graph_checker import GraphChecker
from services.registry.storage import variables, workflows
from services.registry.storage.workflows import Workflow
from services.registry.usecases.changes import (
    NOBODY,
    WORKFLOW,
    check_changeable,
    hold,
    not_found,
)
from services.registry.usecases.findings import require_complete, require_valid
from services.registry.usecases.node_uses import check_nodes, check_workflow_not_in_templates
from services.registry.usecases.signatures import Standing, pinned_to_others, standing_in

log = structlog.get_logger()

_FIELDS: Final = ("name", "description", "definition", "is_template")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workflows:
    """The dependencies of the use cases of workflows."""

    pool: Pool
    checker: GraphChecker
    python_version: str  # if no node has one
    search: Pool  # with a login that searches the indexes of all tenants for candidates
    caps: Mapping[str, int] = field(default_factory=dict)  # limits of the deployment, by setting


@dataclass(frozen=True, slots=True)
class WorkflowAnswer:
    """A workflow and the findings in its definition."""

    workflow: Workflow
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Proven:
    """A checked definition, and the Python version of its nodes."""

    checked: Checked
    python_version: str


async def create_workflow(
    deps: Workflows,
    caller: Caller,
    *,
    name: str,
    description: str,
    definition: Definition,
    activate: bool,
    key: RequestKey[WorkflowAnswer] | None = None,
    validate_only: bool = False,
    guard: Callable[[WorkflowAnswer], None] = lambda _: None,
) -> WorkflowAnswer | Replayed:
    """Store version 1 of a workflow; raises with all errors, and warnings prevent activation."""
    name_from(name)
    description_from(description)
    earlier = await replay(deps.pool, caller, key)
    if earlier is not None:
        return earlier
    proven = await prove(deps, caller, definition)
    require_valid(proven.checked, complete=activate)
    workflow = first_version(
        caller,
        name=name,
        description=description,
        definition=proven.checked.definition,
        python_version=proven.python_version,
        activate=activate,
        validate_only=validate_only,
    )
    answer = WorkflowAnswer(workflow, proven.checked.findings)
    guard(answer)  # may refuse a response that is too large, before anything is stored
    if validate_only:
        return answer

    async def write(db: Db) -> WorkflowAnswer:
        return replace(answer, workflow=await insert_workflow(db, workflow))

    written = await write_once(deps.pool, caller, key, write)
    if isinstance(written, WorkflowAnswer):
        log.info("workflow_created", workflow_id=str(workflow.id), nodes=len(definition.nodes))
    return written


def first_version(
    caller: Caller,
    *,
    name: str,
    description: str,
    definition: Definition,
    python_version: str,
    activate: bool,
    validate_only: bool,
) -> Workflow:
    """Return version 1 of a workflow with a checked definition; stores nothing."""
    now = datetime.now(UTC)
    return Workflow(
        id=NOBODY if validate_only else uuid7(),
        version=1,
        current_version=1,
        name=name,
        description=description,
        definition=definition,
        python_version=python_version,
        is_active=activate,
        tenant_id=caller.tenant_id,
        created_by=caller.user_id,
        created_at=now,
        updated_at=now,
    )


async def insert_workflow(db: Db, workflow: Workflow) -> Workflow:
    """Store version 1 of a workflow; its nodes are locked meanwhile."""
    created_at, updated_at = await workflows.insert_workflow(db, workflow)
    await workflows.insert_version(db, uuid7(), workflow, author=workflow.created_by)
    await check_nodes(db, workflow)
    return replace(workflow, created_at=created_at, updated_at=updated_at)


async def check_workflow(
    deps: Workflows, caller: Caller, definition: Definition, workflow_id: UUID | None = None
) -> Checked:
    """Check a definition without storing it; returns findings instead of raising."""
    if workflow_id is not None:
        async with as_caller(deps.pool, caller) as db:
            await get_visible(db, workflow_id)
    return (await prove(deps, caller, definition, workflow_id)).checked


async def get_workflow(
    pool: Pool,
    caller: Caller,
    workflow_id: UUID,
    *,
    version: int = 0,
    with_graph: bool = True,
    field: str = "version",
) -> Workflow:
    """Return a workflow at a version; raises `NotFound`, also for other tenants' workflows."""
    async with as_caller(pool, caller) as db:
        workflow = await workflows.get_workflow(
            db, workflow_id, version=version, with_graph=with_graph
        )
        if workflow is None and version:
            head = await workflows.get_workflow(db, workflow_id, with_graph=False)
            if head is not None:
                kind, newest = WORKFLOW.name, head.version
                raise no_version(kind, workflow_id, version, newest=newest, field=field)
    if workflow is None:
        raise not_found(WORKFLOW.name, workflow_id)
    return workflow


async def read_workflows(
    pool: Pool,
    caller: Caller,
    workflow_ids: Sequence[UUID],
    *,
    with_graph: bool,
    with_deleted: bool = False,
) -> Iterator[Workflow]:
    """Return found workflows in the order of their ids, decoded lazily."""
    async with as_caller(pool, caller) as db:
        return await workflows.list_workflows(
            db, workflow_ids, with_graph=with_graph, with_deleted=with_deleted
        )


async def update_workflow(
    deps: Workflows,
    caller: Caller,
    workflow_id: UUID,
    *,
    name: str,
    description: str,
    definition: Definition | None,
    is_template: bool = False,
    mask: Sequence[str],
    etag: str = "",
    key: RequestKey[WorkflowAnswer] | None = None,
    validate_only: bool = False,
    guard: Callable[[WorkflowAnswer], None] = lambda _: None,
) -> WorkflowAnswer | Replayed:
    """Change a workflow; a definition makes a new version, complete if the workflow is active."""
    _check_update(mask, definition)
    earlier = await replay(deps.pool, caller, key)
    if earlier is not None:
        return earlier
    before = await get_workflow(deps.pool, caller, workflow_id)
    check_changeable(WORKFLOW.name, before, caller, etag=etag)
    after = before
    findings: tuple[Finding, ...] = ()
    if "name" in mask:
        after = replace(after, name=name_from(name))
    if "description" in mask:
        after = replace(after, description=description_from(description))
    if "is_template" in mask:
        after = replace(after, is_template=is_template)
    if "definition" in mask and definition is not None:
        proven = await prove(deps, caller, definition, workflow_id)
        require_valid(proven.checked, complete=before.is_active)
        after, findings = next_version(after, proven), proven.checked.findings
    guard(WorkflowAnswer(after, findings))

    async def write(db: Db) -> WorkflowAnswer:
        return WorkflowAnswer(await save(db, before, after, caller), findings)

    if validate_only:
        await rehearse(deps.pool, caller, write)
        return WorkflowAnswer(after, findings)
    written = await write_once(deps.pool, caller, key, write)
    log.info("workflow_updated", workflow_id=str(workflow_id), version=after.version)
    return written


async def set_active(
    deps: Workflows,
    caller: Caller,
    workflow_id: UUID,
    *,
    active: bool,
    etag: str = "",
    key: RequestKey[WorkflowAnswer] | None = None,
) -> WorkflowAnswer | Replayed:
    """Activate or deactivate a workflow; activating checks it against its nodes again."""
    earlier = await replay(deps.pool, caller, key)
    if earlier is not None:
        return earlier
    before = await get_workflow(deps.pool, caller, workflow_id)
    check_changeable(WORKFLOW.name, before, caller, etag=etag)
    after = replace(before, is_active=active)
    findings: tuple[Finding, ...] = ()
    if active and not before.is_active:
        proven = await prove(deps, caller, before.definition, workflow_id)
        # Not an invalid request: the state of the nodes prevents it.
        require_complete(proven.checked)
        findings = proven.checked.findings
        # Nodes without a fixed version may have other types now, and their edges other conversions.
        if proven.checked.definition != before.definition:
            after = next_version(after, proven)

    async def write(db: Db) -> WorkflowAnswer:
        if after == before:
            return WorkflowAnswer(before)
        return WorkflowAnswer(await save(db, before, after, caller), findings)

    written = await write_once(deps.pool, caller, key, write)
    if isinstance(written, WorkflowAnswer) and after != before:
        event = "workflow_activated" if active else "workflow_deactivated"
        log.info(event, workflow_id=str(workflow_id), version=after.version)
    return written


async def get_visible(db: Db, workflow_id: UUID) -> Workflow:
    """Return a workflow without its graph; raises `NotFound`, also if it is deleted."""
    found = await workflows.get_workflow(db, workflow_id, with_graph=False)
    if found is None or found.deleted_at is not None:
        raise not_found(WORKFLOW.name, workflow_id)
    return found


async def get_version(pool: Pool, caller: Caller, workflow_id: UUID, version: int) -> Workflow:
    """Return a version of a workflow (0: current); raises `NotFound` for either."""
    async with as_caller(pool, caller) as db:
        found = await workflows.get_workflow(db, workflow_id, version=version)
        if found is not None and found.deleted_at is None:
            return found
        head = await get_visible(db, workflow_id)
    raise no_version(WORKFLOW.name, workflow_id, version, newest=head.version)


async def require_runnable(deps: Workflows, caller: Caller, workflow: Workflow) -> None:
    """Raise with everything that prevents a version from running with its present nodes."""
    checked = (await prove(deps, caller, workflow.definition, workflow.id)).checked
    require_complete(checked)
    stored = {each.ends: each for each in workflow.definition.connections}
    for index, edge in enumerate(checked.definition.connections):
        was = stored[edge.ends]
        # Versions are immutable: this one lacks what is needed.
        if (was.conversion, was.absent) != (edge.conversion, edge.absent):
            fault = f"needs the conversion {edge.conversion} now, which this version lacks"
            if was.conversion == edge.conversion:
                fault = "gives its input another value now where its source ends without one"
            raise FailedPrecondition(
                "VERSION_OUTDATED",
                f"the nodes changed since: connections[{index}] {fault}; update the workflow",
                fields=[FieldViolation(f"connections[{index}]", fault, "VERSION_OUTDATED")],
                resource=("workflow", str(workflow.id)),
            )


async def prove(
    deps: Workflows, caller: Caller, definition: Definition, workflow_id: UUID | None = None
) -> Proven:
    """Check a definition against the nodes and variables that the caller can read.

    Nodes of other tenants are pinned. A workflow's own variables take precedence.
    """
    definition, pinned = await pinned_to_others(deps.pool, caller, definition)
    standing = Standing({})
    known: dict[str, Type] = {}
    if len(definition.nodes) <= NODES_MAX:
        async with as_caller(deps.pool, caller) as db:
            standing = await standing_in(db, definition, workflow_id)
            if definition.variables:
                known = await variables.get_types(db, definition.variables, workflow_id)
    checked = await deps.checker.check(definition, standing.signatures, known)
    findings = (*checked.findings, *standing.findings, *pinned)
    return Proven(replace(checked, findings=findings), python_of(standing, deps.python_version))


def python_of(standing: Standing, otherwise: str) -> str:
    """Return the Python version of the first node that has one."""
    versions = (row["python_version"] for row in standing.signatures.values() if row is not None)
    return next(filter(None, versions), otherwise)


async def save(db: Db, before: Workflow, after: Workflow, caller: Caller) -> Workflow:
    """Save a change, if the workflow has not been changed meanwhile."""
    await hold(db, WORKFLOW, before.id, etag=before.etag)
    if before.is_template and not after.is_template:
        await check_workflow_not_in_templates(db, before)
    if after.version == before.version:
        updated_at = await workflows.update_head(db, after)
    else:
        updated_at = await workflows.update_workflow(db, after, was=before.version)
        await workflows.insert_version(db, uuid7(), after, author=caller.user_id)
    if updated_at is None:
        raise stale(WORKFLOW.name, before.etag)
    if after.version != before.version or after.is_template != before.is_template:
        await check_nodes(db, after)
    return replace(after, updated_at=updated_at)


def next_version(workflow: Workflow, proven: Proven) -> Workflow:
    """Return the next version of a workflow, with a checked definition."""
    return replace(
        workflow,
        version=workflow.current_version + 1,
        current_version=workflow.current_version + 1,
        definition=proven.checked.definition,
        python_version=proven.python_version,
    )


def _check_update(mask: Sequence[str], definition: Definition | None) -> None:
    check_mask(mask, _FIELDS)
    if "definition" in mask and definition is None:
        field, description = "definition", "is named by update_mask and missing"
        raise InvalidArgument(
            "UPDATE_MASK_INVALID",
            f"{field} {description}",
            fields=[FieldViolation(field, description, "UPDATE_MASK_INVALID")],
        )
