"""Makes new runs of earlier ones: retries, reruns, forks."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from services.kit.caller import Caller
from services.kit.errors import FailedPrecondition, invalid, no_version
from services.kit.pg import Db, as_caller, transaction
from services.orchestrator.domain import inputs, proof, reuse
from services.orchestrator.domain.amounts import Amounts
from services.orchestrator.domain.compile import compile_plan
from services.orchestrator.domain.options import RunOptions, Wishes
from services.orchestrator.domain.plan import Definition, Kind, Plan
from services.orchestrator.domain.reuse import FromNode, Kept
from services.orchestrator.domain.status import NodeStatus
from services.orchestrator.engine.callers import NotStarted
from services.orchestrator.engine.engine import Engine
from services.orchestrator.storage import definitions, executions, node_executions, pins
from services.orchestrator.storage.definitions import Pins
from services.orchestrator.storage.executions import Execution
from services.orchestrator.storage.recovery import split_object
from services.orchestrator.usecases import kept_results
from services.orchestrator.usecases.business_keys import settle_key
from services.orchestrator.usecases.forward import Router
from services.orchestrator.usecases.kept_results import Taken
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
from services.orchestrator.usecases.plans import unlocked
from services.orchestrator.usecases.read import Reader

_TRIES_MAX: Final = 3
_BYTES_MAX: Final = 1024 * 1024
RETRY: Final = "retry"
RERUN: Final = "rerun"
FORK: Final = "fork"
RETRY_QUARANTINED: Final = "retry_quarantined"


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """A request to make a new run of another."""

    execution_id: UUID
    relation: str
    request_id: UUID | None = None
    validate_only: bool = False
    from_nodes: tuple[FromNode, ...] = ()
    input_json: str | None = None  # other inputs of the workflow
    budget: Amounts | None = None  # None: the parent's

    def digest(self) -> str:
        """Return a digest, to compare requests."""
        parts = (self.relation, self.execution_id, self.from_nodes, self.input_json)
        return digest_of(*parts, *([] if self.budget is None else [tuple(self.budget)]))


@dataclass(frozen=True, slots=True)
class Checked:
    """Checks that runs of one batch have passed: each is made once per batch."""

    workflows: set[UUID] = field(default_factory=set)
    nodes: set[tuple[UUID, frozenset[UUID]]] = field(default_factory=set)  # pins, node versions


@dataclass(frozen=True, slots=True)
class Rerunner:
    """The dependencies of these use cases."""

    reader: Reader
    engine: Engine
    router: Router

    async def make(
        self, caller: Caller, again: Again, checked: Checked | None = None
    ) -> tuple[Started, int]:
        """Make a new run; returns it once committed, with the number of kept results.

        What `checked` holds is not checked again, unless the flush refuses the run.
        """
        request_id = None if again.validate_only else again.request_id
        digest = again.digest()
        for left in reversed(range(_TRIES_MAX)):
            earlier = await same_request(self.reader.api_pool, caller, request_id, digest)
            if earlier is not None:
                return await self._again(caller, earlier)
            asked = await self._launch(caller, again, checked or Checked())
            asked = asked._replace(request_id=request_id, digest=digest)
            kept = asked.kept_count
            if again.validate_only:
                await self._settle_key(caller, asked, dry=True)
                return preview(caller, asked), kept
            try:
                return Started(await launch(self.engine, caller, asked), asked.plan), kept
            except NotStarted:
                checked = None  # it may have changed since
                await self._settle_key(caller, asked, dry=not left)
        raise changes_all_the_time(asked.wishes)

    async def _again(self, caller: Caller, earlier: Execution) -> tuple[Started, int]:
        found, plan = await self.reader.again(caller, earlier)
        async with as_caller(self.reader.api_pool, caller) as db:
            rows = await node_executions.list_nodes(db, earlier.id)
        copied = [row for row in rows if row.copied_from is not None and not row.cache_hit]
        kept = sum(row.status is NodeStatus.COMPLETED for row in copied)
        return Started(found, plan, existing=True), kept

    async def _settle_key(self, caller: Caller, asked: Launch, *, dry: bool = False) -> None:
        workflow_id = asked.plan.workflow_id
        await settle_key(self.reader, self.router, caller, workflow_id, asked.wishes, dry=dry)

    async def _launch(self, caller: Caller, again: Again, checked: Checked) -> Launch:
        parent, plan = await self.reader.get(caller, again.execution_id, full=True)
        if again.relation != FORK and not parent.final:
            raise FailedPrecondition(
                "EXECUTION_NOT_FINISHED",
                f"the execution is {parent.status}: wait for its end, cancel it, or fork it",
                resource=("execution", str(parent.id)),
            )
        await self._check_workflow(caller, plan, checked)
        input_json = parent.input_data or "{}"
        if again.input_json is not None:
            input_json = again.input_json or "{}"
            await asyncio.to_thread(inputs.check, plan, input_json)
        taken = Taken()
        if again.relation == RETRY_QUARANTINED:
            taken = await self._unpoisoned(caller, parent, plan)
        elif again.relation != RETRY:
            taken = await self._taken(caller, parent, plan, again, input_json)
            recorded = {**taken.recorded, proof.RUN: split_object(input_json)}
            plan = await self._edited(caller, parent, plan, again, recorded)
        await self._check_nodes(caller, plan, taken.kept, checked)
        check_runners(self.engine, plan)
        return Launch(
            plan=plan,
            input_json=input_json,
            wishes=_wishes(parent, again),
            kept=taken.kept,
            partly=taken.partly,
            undoes=taken.undoes,
        )

    async def _check_workflow(self, caller: Caller, plan: Plan, checked: Checked) -> None:
        if plan.workflow_id is None or plan.workflow_id in checked.workflows:
            return
        async with as_caller(self.reader.api_pool, caller) as db:
            head = await definitions.get_head(db, plan.workflow_id)
        if head is None or not head.is_active:
            reason = "WORKFLOW_GONE" if head is None else "WORKFLOW_INACTIVE"
            said = "deleted" if head is None else "not active; call ActivateWorkflow first"
            raise FailedPrecondition(
                reason,
                f"the workflow of the execution is {said}",
                resource=("workflow", str(plan.workflow_id)),
            )
        checked.workflows.add(plan.workflow_id)

    async def _check_nodes(
        self, caller: Caller, plan: Plan, kept: Sequence[Kept], checked: Checked
    ) -> None:
        """Refuse nodes that would run but cannot be read any more; load their lock states."""
        copied = {each.place for each in kept}
        wanted = frozenset(
            place.node_version_id
            for at, place in enumerate(plan.places)
            if at not in copied and place.kind is Kind.PYTHON
        )
        if (plan.pins_id, wanted) in checked.nodes:
            return
        known = self.engine.core.unlocked
        async with transaction(self.reader.engine_pool) as db:
            found = await pins.readable(db, caller.tenant_id, wanted)
            self.engine.core.unlocked |= await unlocked(db, [plan], known)
        lost = [each.id for each in plan.places if each.node_version_id in wanted - found]
        if lost:
            raise FailedPrecondition(
                "NODE_MISSING", f"{lost[0]}: its node was deleted, or you may not read it"
            )
        checked.nodes.add((plan.pins_id, wanted))

    async def _taken(
        self, caller: Caller, parent: Execution, plan: Plan, again: Again, input_json: str
    ) -> Taken:
        """Return what is kept: completed nodes, except those to rerun and their descendants.

        Of a failed map the completed elements are kept, unless the map is to be rerun.
        """
        begin = {_place_of(plan, at, each) for at, each in enumerate(again.from_nodes)}
        if len(begin) < len(again.from_nodes):
            raise invalid("from_nodes", "NODE_NAMED_TWICE", "names a node twice")
        if again.input_json is not None:
            before, after = split_object(parent.input_data or "{}"), split_object(input_json)
            begin |= reuse.readers_of(plan, reuse.changed_inputs(before, after))
        lost = reuse.below(plan, begin)
        async with as_caller(self.reader.api_pool, caller) as db:
            found = await kept_results.look(db, parent, plan)
            in_part = found.broken(plan) - lost if parent.final else set[int]()
            stand = kept_results.standing(plan, found, lost=lost, in_part=in_part)
            if len(stand) == plan.main_size and not in_part and not plan.finals:
                raise FailedPrecondition(
                    "NOTHING_TO_RERUN",
                    "every node completed or was skipped, and would be kept: name nodes in "
                    "from_nodes, or retry",
                    resource=("execution", str(parent.id)),
                )
            return await kept_results.take(db, parent, plan, found, stand=stand, in_part=in_part)

    async def _unpoisoned(self, caller: Caller, parent: Execution, plan: Plan) -> Taken:
        """Return what is kept when quarantined elements are rerun, of their maps as well.

        Other failed nodes are rerun as well, as in any rerun.
        """
        async with as_caller(self.reader.api_pool, caller) as db:
            found = await kept_results.look(db, parent, plan)
            poisoned = found.poisoned()
            if not poisoned:
                below = await executions.find_put_aside_below(db, parent.id)
                raise _nothing_put_aside(parent, below)
            in_part = poisoned.intersection(found.completed()) | found.broken(plan)
            stand = kept_results.standing(plan, found, lost=(), in_part=in_part)
            return await kept_results.take(db, parent, plan, found, stand=stand, in_part=in_part)

    async def _edited(
        self,
        caller: Caller,
        parent: Execution,
        plan: Plan,
        again: Again,
        recorded: Mapping[str, Mapping[str, bytes]],
    ) -> Plan:
        """Return the plan with new inputs and versions, checked again; unchanged without any."""
        if not any(each.input_json or each.version is not None for each in again.from_nodes):
            return plan
        plans = self.reader.plans
        async with transaction(self.reader.engine_pool) as db:
            [taken] = await definitions.get_pins(db, [parent.pins_id])
            definition = await plans.pinned_definition(db, taken)
            by_place = await _versions(db, caller, plan, taken, definition, again)
            versions = await pins.get_whole_versions(db, by_place.values())
            inner = await plans.inner_signatures(db, plan)
        at_places = {
            place: versions[version]
            for place, version in by_place.items()
            if version in versions  # else it is the pins of a sub-workflow
        }
        takes = at_places | inner
        edits = await asyncio.to_thread(proof.new_inputs, again.from_nodes, definition, takes)
        changed = reuse.edited(definition, edits)
        await asyncio.to_thread(proof.prove, changed, takes, taken.variables, recorded)
        merged = {**taken.inputs}
        for place, texts in edits.items():
            merged[place] = {**merged.get(place, {}), **texts}
        if sum(len(text) for each in merged.values() for text in each.values()) > _BYTES_MAX:
            raise invalid("from_nodes", "INPUTS_TOO_LARGE", f"must have at most {_BYTES_MAX} bytes")
        pins_id = UUID(int=0)
        if not again.validate_only:
            async with transaction(self.reader.engine_pool) as db:
                pins_id = await pins.keep_edited(db, caller.tenant_id, taken, by_place, merged)
                return (await plans.by_pins(db, [pins_id]))[pins_id]
        subs = {place.id: place.sub for place in plan.places if place.sub is not None}
        return compile_plan(
            changed, at_places, pins_id=pins_id, variables=taken.variables, plans=subs
        )


async def _versions(
    db: Db, caller: Caller, plan: Plan, taken: Pins, definition: Definition, again: Again
) -> dict[str, UUID]:
    """Return the node versions by place, with the requested ones."""
    by_place = dict(taken.by_place)
    asked = {each.node_id: each.version for each in again.from_nodes if each.version is not None}
    if not asked:
        return by_place
    nodes = [
        {"id": node["id"], "node_id": node.get("node_id"), "version": asked[str(node["id"])]}
        for node in definition.of_kind(Kind.PYTHON)
        if str(node["id"]) in asked
    ]
    if plan.workflow_id is None:
        raise invalid(
            "from_nodes",
            "INVALID_FIELD",
            "not for a run of one node: call RunNode for another version",
        )
    found = await definitions.resolve(db, caller.tenant_id, nodes)
    for at, each in enumerate(again.from_nodes):
        if each.version is not None and each.node_id not in found:
            field = f"from_nodes[{at}].node_version"
            place = plan.places[plan.index[each.node_id]]
            if place.kind is not Kind.PYTHON:
                said = f"no Python node runs at {each.node_id}: leave the version out"
                raise invalid(field, "VERSION_NOT_HERE", said)
            raise no_version("node", place.node_id, each.version, newest=None, field=field)
    return by_place | {place: version.id for place, version in found.items()}


def _wishes(parent: Execution, again: Again) -> Wishes:
    """Return the options of the new run: its parent's, except the start time.

    A fork has no business key. The whole budget of the parent is reserved again, from what is left
    of the tenant's quota. If nodes are named, they run regardless of the cache.
    """
    timeout_ms = None
    begins = parent.created_at
    if parent.deadline_at is not None and begins is not None:
        begins = max(begins, parent.start_at or begins)
        timeout_ms = round((parent.deadline_at - begins).total_seconds() * 1000)
    options = RunOptions(
        business_key=None if again.relation == FORK else parent.business_key,
        labels=parent.labels,
        priority=parent.priority,
        parent_execution_id=parent.id,
        relation=again.relation,
        ignores_cache=bool(parent.ignores_cache or again.from_nodes),
        node_version_id=parent.node_version_id,
        budget=parent.budget if again.budget is None else again.budget,
    )
    return Wishes(options=options, timeout_ms=timeout_ms)


def _nothing_put_aside(parent: Execution, below: tuple[UUID, str] | None) -> FailedPrecondition:
    """Return the error that nothing is quarantined here, with a hint at a sub-workflow."""
    reason, resource = "NOTHING_QUARANTINED", ("execution", str(parent.id))
    if below is None:
        said = "no element of a map was quarantined; RerunExecution runs what failed again"
        return FailedPrecondition(reason, said, resource=resource)
    execution_id, place = below
    return FailedPrecondition(
        reason,
        "no element of its own maps was quarantined, but some were in the sub-workflow of "
        f"{place}: RerunExecution with {place} in from_nodes runs all of that again, and what "
        f"depends on it; RetryQuarantined for execution {execution_id} runs those elements again, "
        "in a run of their own",
        resource=resource,
        node_id=place,
        sub_workflow_execution_id=execution_id,
    )


def _place_of(plan: Plan, at: int, each: FromNode) -> int:
    place = plan.index.get(each.node_id)
    if place is None:
        field = f"from_nodes[{at}].node"
        raise invalid(field, "NODE_UNKNOWN", f"there is no node {each.node_id} in the workflow")
    return place
