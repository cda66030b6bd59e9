"""Starts executions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from services.kit import crash
from services.kit.caller import Caller
from services.kit.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    QflowError,
    QuotaExceeded,
    no_version,
)
from services.kit.pg import Pool, as_caller, connection, transaction
from services.orchestrator.domain import inputs
from services.orchestrator.domain.options import NO_WISHES, Wishes
from services.orchestrator.domain.plan import Kind, Plan
from services.orchestrator.domain.rows import Follows
from services.orchestrator.engine.callers import NotStarted
from services.orchestrator.engine.engine import Engine
from services.orchestrator.storage import definitions
from services.orchestrator.storage.executions import Execution
from services.orchestrator.usecases.business_keys import settle_key
from services.orchestrator.usecases.forward import Router
from services.orchestrator.usecases.launch import (
    Launch,
    Started,
    changes_all_the_time,
    check_runners,
    digest_of,
    launch,
    preview,
    same_request,
)
from services.orchestrator.usecases.plans import Plans, unlocked, weight_of
from services.orchestrator.usecases.read import Reader
from services.orchestrator.usecases.recent import Recent
from services.orchestrator.usecases.shared import Shared
from services.orchestrator.usecases.variables import taken_variables
from services.orchestrator.usecases.versions import no_alias

_TRIES_MAX: Final = 3
# The size of the cache of plans, in places.
_PLACES_MAX: Final = 100_000
# Longer inputs are checked in a thread, to keep the event loop free.
_CHECK_INLINE_MAX: Final = 64 * 1024


Stamp = tuple[UUID, int]  # of a variable; changes with each change of it


@dataclass(frozen=True, slots=True)
class Known:
    """What a start looked up, for use by the next one."""

    plan: Plan
    current: int | None  # the expected current version; None if a version was requested
    follows: tuple[Follows, ...]  # the expected current versions of nodes
    variables: Mapping[str, Stamp]  # the expected stamps of variables


@dataclass(slots=True)
class Starter:
    """Starts executions; caches what it looked up of recently started workflows."""

    api_pool: Pool
    engine_pool: Pool
    engine: Engine
    plans: Plans
    router: Router
    # By tenant, workflow and requested version. An entry may be stale: the flush detects that and
    # inserts nothing, or a check refuses what the current version takes. Either way the start looks
    # everything up again.
    _known: Recent[tuple[UUID, UUID, int], Known] = field(
        default_factory=lambda: Recent(_PLACES_MAX)
    )
    _stamps: Shared[tuple[UUID, UUID, frozenset[str]], dict[str, Stamp]] = field(init=False)
    _reader: Reader = field(init=False)

    def __post_init__(self) -> None:
        """Create the reader and the shared look-up of variables."""
        self._reader = Reader(self.api_pool, self.engine_pool, self.plans)
        self._stamps = Shared(self._look_at_variables)

    async def start(
        self,
        caller: Caller,
        workflow_id: UUID,
        version: int,
        input_json: str,
        request_id: UUID | None,
        *,
        alias: str = "",
        wishes: Wishes = NO_WISHES,
        validate_only: bool = False,
    ) -> Started:
        """Start a workflow and return once the execution is committed.

        With `validate_only` everything is checked and nothing is stored.
        """
        digest = ""
        if request_id is not None:
            digest = digest_of_start(workflow_id, alias or version, input_json, wishes)
        for left in reversed(range(_TRIES_MAX)):
            try:
                if alias:
                    version = await self._aliased(caller, workflow_id, alias)
                known = await self._fitting(
                    *(caller, workflow_id, version),
                    lambda plan: self._check_start(plan, input_json),
                    dry=validate_only,
                )
                asked = Launch(
                    plan=known.plan,
                    input_json=input_json,
                    request_id=request_id,
                    digest=digest,
                    wishes=wishes,
                    current=known.current,
                    follows=known.follows,
                    alias=alias,
                )
                if validate_only:
                    holder = await self._settle_key(caller, workflow_id, wishes, dry=True)
                    if holder is not None:
                        return await self._again(caller, holder)
                    return preview(caller, asked)
                return Started(await launch(self.engine, caller, asked), known.plan)
            except NotStarted:
                self.forget(caller, workflow_id, version)
                earlier = await self._same_request(caller, request_id, digest)
                # A start that cancels another run retries once more; the last attempt cancels none.
                earlier = earlier or await self._settle_key(
                    caller, workflow_id, wishes, dry=not left
                )
            except (NotFound, FailedPrecondition, InvalidArgument, QuotaExceeded):
                # A repeated request gets the same answer, even if the workflow is gone by now, does
                # not fit its nodes or the inputs any more, or exceeds the quota.
                earlier = await self._same_request(caller, request_id, digest)
                if earlier is None:
                    raise
            if earlier is not None:
                return await self._again(caller, earlier)
        raise changes_all_the_time(wishes)

    async def _settle_key(
        self, caller: Caller, workflow_id: UUID, wishes: Wishes, *, dry: bool = False
    ) -> Execution | None:
        return await settle_key(self._reader, self.router, caller, workflow_id, wishes, dry=dry)

    async def check(
        self, caller: Caller, workflow_id: UUID, version: int, input_json: str, *, alias: str = ""
    ) -> None:
        """Raise the error that a start would get now."""
        if alias:
            version = await self._aliased(caller, workflow_id, alias)
        await self._fitting(
            caller, workflow_id, version, lambda plan: self._check_start(plan, input_json)
        )

    async def check_some(
        self,
        caller: Caller,
        workflow_id: UUID,
        version: int,
        input_json: str,
        *,
        alias: str,
        payload_input: str,
    ) -> None:
        """Raise the error that every start with these inputs, among others, would get now."""
        if alias:
            version = await self._aliased(caller, workflow_id, alias)

        async def fits(plan: Plan) -> None:
            inputs.check_some(plan, input_json, payload_input=payload_input)

        await self._fitting(caller, workflow_id, version, fits)

    async def known(
        self,
        caller: Caller,
        workflow_id: UUID,
        version: int,
        alias: str,
        *,
        fresh: bool = False,
    ) -> Known:
        """Return the plan of a start, after checking that runners can run it.

        It may be stale, unless it is to be `fresh`.
        """
        if alias:
            version = await self._aliased(caller, workflow_id, alias)

        async def fits(plan: Plan) -> None:
            check_runners(self.engine, plan)

        if fresh:
            self.forget(caller, workflow_id, version)
        return await self._fitting(caller, workflow_id, version, fits)

    async def check_inputs(self, plan: Plan, input_json: str) -> None:
        """Refuse inputs that do not fit a plan."""
        if len(input_json) > _CHECK_INLINE_MAX:
            await asyncio.to_thread(inputs.check, plan, input_json)
        else:
            inputs.check(plan, input_json)

    def forget(self, caller: Caller, workflow_id: UUID, version: int) -> None:
        """Drop a cached plan that the flush refused."""
        self._known.drop((caller.tenant_id, workflow_id, version))

    async def _check_start(self, plan: Plan, input_json: str) -> None:
        check_runners(self.engine, plan)
        await self.check_inputs(plan, input_json)

    async def _fitting(
        self,
        caller: Caller,
        workflow_id: UUID,
        version: int,
        fits: Callable[[Plan], Awaitable[None]],
        *,
        dry: bool = False,
    ) -> Known:
        """Return the plan of a start that a check lets through.

        What does not fit a cached plan may fit the current one, so it is checked against that, too.
        """
        if not dry:
            known = await self._cached(caller, workflow_id, version)
            if known is not None:
                with suppress(QflowError):
                    await fits(known.plan)
                    return known
        known = await self._look_up(caller, workflow_id, version, store=not dry)
        await fits(known.plan)
        return known

    async def _again(self, caller: Caller, earlier: Execution) -> Started:
        return Started(*await self._reader.again(caller, earlier), existing=True)

    async def _cached(self, caller: Caller, workflow_id: UUID, version: int) -> Known | None:
        """Return the plan of an earlier start, unless a variable has changed since."""
        known = self._known.get((caller.tenant_id, workflow_id, version))
        if known is not None and await self._still_reads(
            caller.tenant_id, workflow_id, known.variables
        ):
            return known
        return None

    async def _look_up(
        self, caller: Caller, workflow_id: UUID, version: int, *, store: bool
    ) -> Known:
        """Look up the current plan of a workflow, and cache it."""
        async with as_caller(self.api_pool, caller) as db:
            head = await definitions.get_head(db, workflow_id)
        if head is None:
            raise _missing(workflow_id)
        if not head.is_active:
            raise FailedPrecondition(
                "WORKFLOW_INACTIVE",
                "the workflow is a draft; call ActivateWorkflow first",
                resource=("workflow", str(workflow_id)),
            )
        async with transaction(self.engine_pool) as db:
            definition = await self.plans.definition(db, workflow_id, version or head.version)
            if definition is None:
                raise no_version(
                    *("workflow", workflow_id, version),
                    newest=head.version,
                    field="workflow_version",
                )
            variables = await taken_variables(db, caller.tenant_id, definition)
            texts = {each.name: each.text for each in variables}
            plan = await self.plans.pinned(db, caller.tenant_id, definition, texts, store=store)
            if plan is None:
                raise FailedPrecondition(
                    "NODE_MISSING",
                    "a node of the workflow was deleted, or you may not read it; update it",
                    resource=("workflow", str(workflow_id)),
                )
            self.engine.core.unlocked |= await unlocked(db, [plan], self.engine.core.unlocked)
        if store:
            crash.reach("start_pinned")
        followed = {
            UUID(node["node_id"]): plan.places[plan.index[node["id"]]].node_version_id
            for node in definition.of_kind(Kind.PYTHON)
            if not node.get("version")
        }
        follows = tuple(Follows(plan.pins_id, caller.tenant_id, *each) for each in followed.items())
        stamps = {each.name: each.stamp for each in variables}
        found = Known(plan, None if version else head.version, follows, stamps)
        if store and not plan.floating:  # the flush checks no sub-workflows
            key = (caller.tenant_id, workflow_id, version)
            self._known.keep(key, found, weight=weight_of(plan, texts))
        return found

    async def _aliased(self, caller: Caller, workflow_id: UUID, alias: str) -> int:
        """Return the version of an alias, which the flush checks again."""
        async with as_caller(self.api_pool, caller) as db:
            version = await definitions.get_aliased(db, workflow_id, alias)
            if version is None and await definitions.get_head(db, workflow_id) is None:
                raise _missing(workflow_id)
        if version is None:
            raise no_alias(alias, workflow_id=workflow_id)
        return version

    async def _still_reads(
        self, tenant_id: UUID, workflow_id: UUID, variables: Mapping[str, Stamp]
    ) -> bool:
        """Return whether the variables of a plan are unchanged."""
        if not variables:
            return True
        key = (tenant_id, workflow_id, frozenset(variables))
        return await self._stamps.get(key) == variables

    async def _look_at_variables(self, key: tuple[UUID, UUID, frozenset[str]]) -> dict[str, Stamp]:
        async with connection(self.engine_pool) as db:  # a single statement needs no transaction
            found = await definitions.get_variables(db, *key, with_text=False)
        return {each.name: each.stamp for each in found}

    async def _same_request(
        self, caller: Caller, request_id: UUID | None, digest: str
    ) -> Execution | None:
        return await same_request(self.api_pool, caller, request_id, digest)


def digest_of_start(workflow_id: UUID, named: str | int, input_json: str, wishes: Wishes) -> str:
    """Return the digest of a start; `named` is the requested alias or version."""
    said = wishes.digest()
    return digest_of(workflow_id, named, input_json, *([said] if said else []))


def _missing(workflow_id: UUID) -> NotFound:
    return NotFound(
        "WORKFLOW_NOT_FOUND",
        "no such workflow; ListWorkflows shows those you may start",
        resource=("workflow", str(workflow_id)),
    )
