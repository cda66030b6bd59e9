"""Workflows: graphs that are proven when they are stored, and stand as drafts until complete."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import structlog

from services.kit.caller import Caller
from services.kit.errors import (
    Conflict,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)
from services.kit.ids import uuid7
from services.kit.pg import Db, Pool, as_caller
from services.registry.domain.definition import (
    ERROR,
    INFO,
    NODES_MAX,
    Checked,
    Definition,
    Finding,
)
from services.registry.domain.texts import description_from, name_from
from services.registry.gateways.graph_checker import GraphChecker
from services.registry.storage import nodes, workflows
from services.registry.storage.workflows import Workflow
from services.registry.usecases.idempotency import Replayed, RequestKey, replay, write_once

log = structlog.get_logger()

_NOBODY: Final = UUID(int=0)
_FIELDS: Final = ("name", "description", "definition")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workflows:
    """What the use cases of workflows need."""

    pool: Pool
    checker: GraphChecker
    python_version: str  # of a workflow whose nodes name none


@dataclass(frozen=True, slots=True)
class WorkflowAnswer:
    """A workflow with what was found in its definition."""

    workflow: Workflow
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class _Proven:
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
    """Store version 1 of a workflow; all faults are told at once, warnings hinder activation."""
    name_from(name)
    description_from(description)
    earlier = await replay(deps.pool, caller, key)
    if earlier is not None:
        return earlier
    proven = await _prove(deps, caller, definition)
    _require(proven.checked, complete=activate)
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
    guard(answer)  # whoever will have to send it may refuse it while nothing is stored
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
    """Make version 1 of a workflow whose definition is proven, and store nothing."""
    now = datetime.now(UTC)
    return Workflow(
        id=_NOBODY if validate_only else uuid7(),
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
    """Store version 1 of a workflow."""
    created_at, updated_at = await workflows.insert_workflow(db, workflow)
    await workflows.insert_version(db, uuid7(), workflow, author=workflow.created_by)
    return replace(workflow, created_at=created_at, updated_at=updated_at)


async def check_workflow(deps: Workflows, caller: Caller, definition: Definition) -> Checked:
    """Check a definition and store nothing; faults are findings, not errors."""
    return (await _prove(deps, caller, definition)).checked


async def get_workflow(
    pool: Pool, caller: Caller, workflow_id: UUID, *, version: int = 0, with_graph: bool = True
) -> Workflow:
    """Find a workflow at a version; another tenant's is as absent as one that does not exist."""
    async with as_caller(pool, caller) as db:
        workflow = await workflows.get_workflow(
            db, workflow_id, version=version, with_graph=with_graph
        )
    if workflow is None:
        raise not_found(workflow_id)
    return workflow


async def list_workflows(
    pool: Pool,
    caller: Caller,
    *,
    after: tuple[datetime, UUID] | None,
    limit: int,
    with_graph: bool,
) -> Iterator[Workflow]:
    """List the workflows that the caller may read, newest first, each decoded as it is taken."""
    async with as_caller(pool, caller) as db:
        return await workflows.list_workflows(db, after=after, limit=limit, with_graph=with_graph)


async def update_workflow(
    deps: Workflows,
    caller: Caller,
    workflow_id: UUID,
    *,
    name: str,
    description: str,
    definition: Definition | None,
    mask: Sequence[str],
    etag: str = "",
    key: RequestKey[WorkflowAnswer] | None = None,
    validate_only: bool = False,
    guard: Callable[[WorkflowAnswer], None] = lambda _: None,
) -> WorkflowAnswer | Replayed:
    """Change a workflow; a definition makes a new version, which an active one takes only whole."""
    _check_mask(mask, definition)
    earlier = await replay(deps.pool, caller, key)
    if earlier is not None:
        return earlier
    before = await get_workflow(deps.pool, caller, workflow_id)
    _check_etag(before, etag)
    after = before
    findings: tuple[Finding, ...] = ()
    if "name" in mask:
        after = replace(after, name=name_from(name))
    if "description" in mask:
        after = replace(after, description=description_from(description))
    if "definition" in mask and definition is not None:
        proven = await _prove(deps, caller, definition)
        _require(proven.checked, complete=before.is_active)
        after, findings = _next_version(after, proven), proven.checked.findings
    guard(WorkflowAnswer(after, findings))
    if validate_only:
        return WorkflowAnswer(after, findings)

    async def write(db: Db) -> WorkflowAnswer:
        return WorkflowAnswer(await _save(db, before, after, caller), findings)

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
    """Let a workflow be started, or no longer; activating proves it again as its nodes are now."""
    earlier = await replay(deps.pool, caller, key)
    if earlier is not None:
        return earlier
    before = await get_workflow(deps.pool, caller, workflow_id)
    _check_etag(before, etag)
    after = replace(before, is_active=active)
    findings: tuple[Finding, ...] = ()
    if active and not before.is_active:
        proven = await _prove(deps, caller, before.definition)
        # The request is right whatever is found: what hinders is the state of the nodes.
        _require_complete(proven.checked)
        findings = proven.checked.findings
        # Floating nodes may have other types by now, and their edges other conversions.
        if proven.checked.definition != before.definition:
            after = _next_version(after, proven)

    async def write(db: Db) -> WorkflowAnswer:
        if after == before:
            return WorkflowAnswer(before)
        return WorkflowAnswer(await _save(db, before, after, caller), findings)

    written = await write_once(deps.pool, caller, key, write)
    if isinstance(written, WorkflowAnswer) and after != before:
        event = "workflow_activated" if active else "workflow_deactivated"
        log.info(event, workflow_id=str(workflow_id), version=after.version)
    return written


async def _prove(deps: Workflows, caller: Caller, definition: Definition) -> _Proven:
    """Check a definition against the nodes that the caller may read."""
    asked = list(dict.fromkeys((each.node_id, each.version) for each in definition.nodes))
    stored: nodes.Signatures = {}
    if len(definition.nodes) <= NODES_MAX:
        async with as_caller(deps.pool, caller) as db:
            stored = await nodes.get_signatures(db, asked)
    checked = await deps.checker.check(definition, stored)
    versions = [str(row["python_version"]) for row in stored.values() if row is not None]
    return _Proven(checked, versions[0] if versions else deps.python_version)


async def _save(db: Db, before: Workflow, after: Workflow, caller: Caller) -> Workflow:
    """Write what changed, if the workflow is still what the change was made from."""
    if not await workflows.lock_workflow(db, before.id):
        if await workflows.get_workflow(db, before.id, with_graph=False) is None:
            raise not_found(before.id)
        raise PermissionDenied(
            "NOT_YOURS", "this workflow may be read, not changed; make a copy of your own"
        )
    current = await workflows.get_workflow(db, before.id, with_graph=False)
    if current is None or current.etag != before.etag:
        raise _stale(current.etag if current else "")
    if after.version == before.version:
        updated_at = await workflows.update_head(db, after)
    else:
        updated_at = await workflows.update_workflow(db, after, was=before.version)
        await workflows.insert_version(db, uuid7(), after, author=caller.user_id)
    if updated_at is None:
        raise _stale(current.etag)
    return replace(after, updated_at=updated_at)


def _next_version(workflow: Workflow, proven: _Proven) -> Workflow:
    return replace(
        workflow,
        version=workflow.current_version + 1,
        current_version=workflow.current_version + 1,
        definition=proven.checked.definition,
        python_version=proven.python_version,
    )


def _require(checked: Checked, *, complete: bool) -> None:
    """Raise with all errors; and with all warnings too where the workflow is to be complete."""
    errors = [each for each in checked.findings if each.severity == ERROR]
    if errors:
        codes = {each.code for each in errors}
        raise InvalidArgument(
            codes.pop() if len(codes) == 1 else "DEFINITION_INVALID",
            _summary(errors),
            fields=[_violation(each) for each in errors],
        )
    if complete:
        _require_complete(checked)


def _require_complete(checked: Checked) -> None:
    """Raise with all errors and warnings: what has any is not started."""
    hindering = [each for each in checked.findings if each.severity != INFO]
    if hindering:
        raise FailedPrecondition(
            "WORKFLOW_INCOMPLETE",
            f"the workflow cannot be started as it is: {_summary(hindering)}",
            fields=[_violation(each) for each in hindering],
        )


def _summary(findings: Sequence[Finding]) -> str:
    first = findings[0]
    more = f"; and {len(findings) - 1} more" if len(findings) > 1 else ""
    return f"{first.place}: {first.message}{more}"


def _violation(each: Finding) -> FieldViolation:
    hint = f"; {each.hint}" if each.hint else ""
    return FieldViolation(each.place, f"{each.message}{hint}", each.code)


def _check_mask(mask: Sequence[str], definition: Definition | None) -> None:
    field, description = "update_mask", ""
    if not mask or any(name not in _FIELDS for name in mask):
        description = f"must name some of {', '.join(_FIELDS)}"
    elif "definition" in mask and definition is None:
        field, description = "definition", "is named by update_mask and missing"
    if description:
        raise InvalidArgument(
            "UPDATE_MASK_INVALID",
            f"{field} {description}",
            fields=[FieldViolation(field, description, "UPDATE_MASK_INVALID")],
        )


def _check_etag(workflow: Workflow, etag: str) -> None:
    if etag and etag != workflow.etag:
        raise _stale(workflow.etag)


def _stale(current: str) -> Conflict:
    return Conflict(
        "ETAG_MISMATCH",
        "the workflow changed since it was read; read it again and repeat the change",
        etag=current,
    )


def not_found(workflow_id: UUID) -> NotFound:
    """Make the answer to an id of nothing that the caller may read."""
    return NotFound(
        "WORKFLOW_NOT_FOUND",
        "there is no such workflow",
        resource=("workflow", str(workflow_id)),
    )
