"""The versions of a workflow: list them, roll back to one, clone one into a new workflow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from uuid import UUID

import structlog

from services.kit.caller import Caller
from services.kit.idempotency import (
    Replayed,
    RequestKey,
    rehearse,
    replay,
    write_once,
)
from services.kit.pg import Db, Pool, as_caller
from services.registry.domain.texts import name_from
from services.registry.storage import versions
from services.registry.storage.versions import Version
from services.registry.storage.workflows import Workflow
from services.registry.usecases.changes import (
    WORKFLOW,
    check_changeable,
    check_live,
    copied,
    not_found,
)
from services.registry.usecases.findings import require_up_to_date
from services.registry.usecases.workflows import (
    WorkflowAnswer,
    Workflows,
    get_workflow,
    insert_workflow,
    next_version,
    prove,
    save,
)

log = structlog.get_logger()


async def list_workflow_versions(
    pool: Pool, caller: Caller, workflow_id: UUID, *, before: int, limit: int, with_graph: bool
) -> Iterator[Version[Workflow]]:
    """List the versions of a workflow that the caller may read, newest first."""
    async with as_caller(pool, caller) as db:
        if await WORKFLOW.get(db, workflow_id) is None:
            raise not_found(WORKFLOW.name, workflow_id)
        return await versions.list_workflow_versions(
            db, workflow_id, before=before, limit=limit, with_graph=with_graph
        )


async def rollback_workflow(
    deps: Workflows,
    caller: Caller,
    workflow_id: UUID,
    *,
    version: int,
    etag: str = "",
    key: RequestKey[WorkflowAnswer] | None = None,
    validate_only: bool = False,
    guard: Callable[[WorkflowAnswer], None] = lambda _: None,
) -> WorkflowAnswer | Replayed:
    """Create a new version with an older definition, checked against the present nodes."""
    earlier = await replay(deps.pool, caller, key)
    if earlier is not None:
        return earlier
    before = await get_workflow(deps.pool, caller, workflow_id)
    check_changeable(WORKFLOW.name, before, caller, etag=etag)
    model = await get_workflow(deps.pool, caller, workflow_id, version=version)
    if version == before.version:
        return WorkflowAnswer(before)
    proven = await prove(deps, caller, model.definition, workflow_id)
    require_up_to_date(proven.checked, complete=before.is_active)
    answer = WorkflowAnswer(next_version(before, proven), proven.checked.findings)
    guard(answer)

    async def write(db: Db) -> WorkflowAnswer:
        return replace(answer, workflow=await save(db, before, answer.workflow, caller))

    if validate_only:
        await rehearse(deps.pool, caller, write)
        return answer
    written = await write_once(deps.pool, caller, key, write)
    log.info("workflow_rolled_back", workflow_id=str(workflow_id), to=version)
    return written


async def clone_workflow(
    deps: Workflows,
    caller: Caller,
    workflow_id: UUID,
    *,
    version: int,
    name: str,
    key: RequestKey[WorkflowAnswer] | None = None,
    validate_only: bool = False,
    guard: Callable[[WorkflowAnswer], None] = lambda _: None,
) -> WorkflowAnswer | Replayed:
    """Clone a version of a workflow into a private, inactive workflow of the caller's tenant."""
    if name:
        name_from(name)
    earlier = await replay(deps.pool, caller, key)
    if earlier is not None:
        return earlier
    model = await get_workflow(deps.pool, caller, workflow_id, version=version)
    check_live(WORKFLOW.name, model)
    proven = await prove(deps, caller, model.definition)
    require_up_to_date(proven.checked, complete=False)
    copy = replace(
        copied(model, caller, name=name, validate_only=validate_only),
        definition=proven.checked.definition,
        python_version=proven.python_version,
        is_active=False,
    )
    answer = WorkflowAnswer(copy, proven.checked.findings)
    guard(answer)
    if validate_only:
        return answer

    async def write(db: Db) -> WorkflowAnswer:
        return replace(answer, workflow=await insert_workflow(db, copy))

    written = await write_once(deps.pool, caller, key, write)
    if isinstance(written, WorkflowAnswer):
        log.info("workflow_cloned", workflow_id=str(copy.id), model_id=str(workflow_id))
    return written
