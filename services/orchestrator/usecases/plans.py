"""Plans: looked up by what they pin, compiled once, cached."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from uuid import UUID

from services.kit.errors import FailedPrecondition
from services.kit.pg import Db
from services.orchestrator.domain import compatibility, reuse, single
from services.orchestrator.domain.compile import compile_plan
from services.orchestrator.domain.plan import Definition, Kind, NodeVersion, Plan
from services.orchestrator.storage import definitions
from services.orchestrator.storage import pins as pins_of
from services.orchestrator.storage.definitions import Pins
from services.orchestrator.usecases.recent import Recent
from services.orchestrator.usecases.variables import taken_variables

# The size of the cache in places, about a kilobyte each: some hundred megabytes at most.
_PLACES_MAX: Final = 100_000
DEPTH_MAX: Final = 8  # of nested sub-workflows
_UNKNOWN: Final = UUID(int=0)
_READY_STATES: Final = frozenset({"none", "locked"})


class _InnerKey(NamedTuple):
    """A sub-workflow as named by a place; version 0 means the current one."""

    workflow_id: UUID
    version: int


def _inner_key(node: Mapping[str, Any]) -> _InnerKey:
    return _InnerKey(UUID(node["node_id"]), int(node.get("version") or 0))


@dataclass(frozen=True, slots=True)
class _Inner:
    """A pinned sub-workflow and its definition."""

    plan: Plan
    definition: Definition

    @property
    def signature(self) -> NodeVersion:
        """Its signature, in the form of a node version's."""
        return NodeVersion(
            id=self.plan.pins_id,
            python_version="",
            output_types=self.definition.output_types,
            input_types=self.definition.input_types,
        )


class Plans:
    """Caches of plans and definitions."""

    def __init__(self) -> None:
        self._by_pins: Recent[UUID, Plan] = Recent(_PLACES_MAX)
        self._definitions: Recent[tuple[UUID, int], Definition] = Recent(_PLACES_MAX)

    async def definition(self, db: Db, workflow_id: UUID, version: int) -> Definition | None:
        """Return an immutable version of a workflow."""
        key = (workflow_id, version)
        found = self._definitions.get(key)
        if found is None:
            found = await definitions.get_definition(db, workflow_id, version)
            if found is None:
                return None
            self._definitions.keep(key, found, weight=len(found.nodes))
        return found

    async def pinned(
        self,
        db: Db,
        tenant_id: UUID,
        definition: Definition,
        variables: Mapping[str, str],
        *,
        store: bool = True,
        depth: int = 0,
        inner: dict[_InnerKey, _Inner] | None = None,
    ) -> Plan | None:
        """Pin a definition to the current versions of its places; None if a node is gone.

        The texts of variables are pinned, too: a run keeps them.

        A definition that does not fit the current versions is refused. Each combination is checked
        once: stored pins have passed. Without `store` the plan has no id. `inner` holds the
        sub-workflows that are pinned already, each once however often it is used.
        """
        known = {} if inner is None else inner
        versions = await definitions.resolve(db, tenant_id, definition.of_kind(Kind.PYTHON))
        if len(versions) < len(definition.of_kind(Kind.PYTHON)):
            return None
        if not await self._pin_inner(db, tenant_id, definition, known, depth=depth, store=store):
            return None
        inside = {
            str(node["id"]): known[_inner_key(node)] for node in definition.of_kind(Kind.WORKFLOW)
        }
        subs = {place: each.plan for place, each in inside.items()}
        pinned = {place: version.id for place, version in versions.items()}
        pinned |= {place: plan.pins_id for place, plan in subs.items()}
        pins = await definitions.find_pins(db, tenant_id, definition, pinned, variables)
        if pins is None:
            fitting = versions | {place: each.signature for place, each in inside.items()}
            await asyncio.to_thread(compatibility.check, definition, fitting, variables)
            if not store:
                return await asyncio.to_thread(
                    compile_plan,
                    definition,
                    versions,
                    pins_id=_UNKNOWN,
                    variables=variables,
                    plans=subs,
                )
            pins = await definitions.keep_pins(db, tenant_id, definition, pinned, variables)
        plan = self._by_pins.get(pins.id)
        if plan is None:
            plan = await asyncio.to_thread(
                compile_plan,
                definition,
                versions,
                pins_id=pins.id,
                variables=variables,
                plans=subs,
            )
            self._by_pins.keep(pins.id, plan, weight=weight_of(plan, variables))
        return plan

    async def _pin_inner(
        self,
        db: Db,
        tenant_id: UUID,
        definition: Definition,
        known: dict[_InnerKey, _Inner],
        *,
        depth: int,
        store: bool,
    ) -> bool:
        """Pin the sub-workflows of a definition; False if one is gone."""
        for node in definition.of_kind(Kind.WORKFLOW):
            if depth >= DEPTH_MAX:
                raise FailedPrecondition(
                    "SUB_WORKFLOWS_TOO_DEEP",
                    f"sub-workflows are nested more than {DEPTH_MAX} levels deep",
                    resource=("workflow", str(definition.workflow_id)),
                )
            key = _inner_key(node)
            if key in known:
                continue
            version = await definitions.resolve_workflow(db, tenant_id, *key)
            if version is None:
                return False
            found = await self.definition(db, key.workflow_id, version)
            assert found is not None, "it was just resolved"
            texts = {each.name: each.text for each in await taken_variables(db, tenant_id, found)}
            plan = await self.pinned(
                db, tenant_id, found, texts, store=store, depth=depth + 1, inner=known
            )
            if plan is None:
                return False
            known[key] = _Inner(plan, found)
        return True

    async def pinned_definition(self, db: Db, pins: Pins) -> Definition:
        """Return the definition of pins, with their edited inputs."""
        if pins.workflow_id is None or pins.workflow_version is None:
            assert pins.node_version_id is not None, "pins are of a workflow or of a node"
            definition = await _single(db, pins.node_version_id)
        else:
            found = await self.definition(db, pins.workflow_id, pins.workflow_version)
            assert found is not None, "a version that runs refer to is never deleted"
            definition = found
        return reuse.edited(definition, pins.inputs)

    async def inner_signatures(self, db: Db, plan: Plan) -> dict[str, NodeVersion]:
        """Return the signatures of a plan's sub-workflows, by place."""
        signatures: dict[str, NodeVersion] = {}
        for place in plan.places:
            if place.sub is None:
                continue
            workflow_id, version = place.sub.workflow_id, place.sub.workflow_version
            assert workflow_id is not None, "a sub-workflow is a workflow"
            assert version is not None
            found = await self.definition(db, workflow_id, version)
            assert found is not None, "a version that runs refer to is never deleted"
            signatures[place.id] = _Inner(place.sub, found).signature
        return signatures

    async def of_node(self, db: Db, tenant_id: UUID, version: NodeVersion) -> Plan:
        """Return the plan of a single node."""
        pins_id = await pins_of.keep_node(db, tenant_id, version.id)
        return (await self.by_pins(db, [pins_id]))[pins_id]

    def known(self, pins_id: UUID) -> Plan | None:
        """Return a plan if it is cached."""
        return self._by_pins.get(pins_id)

    async def by_pins(self, db: Db, ids: Iterable[UUID]) -> dict[UUID, Plan]:
        """Return the plans of pins, by id."""
        # Collected apart from the cache, which may evict any of them while this waits.
        found: dict[UUID, Plan] = {}
        missing: list[UUID] = []
        for each in set(ids):
            plan = self._by_pins.get(each)
            if plan is None:
                missing.append(each)
            else:
                found[each] = plan
        for pins in await definitions.get_pins(db, missing) if missing else ():
            definition = await self.pinned_definition(db, pins)
            inner = {str(node["id"]) for node in definition.of_kind(Kind.WORKFLOW)}
            subs = {place: each for place, each in pins.by_place.items() if place in inner}
            plans = await self.by_pins(db, subs.values())
            versions = await definitions.get_versions(db, pins.by_place.values())
            found[pins.id] = await asyncio.to_thread(
                compile_plan,
                definition,
                {
                    place: versions[version]
                    for place, version in pins.by_place.items()
                    if place not in inner
                },
                pins_id=pins.id,
                variables=pins.variables,
                plans={place: plans[each] for place, each in subs.items()},
            )
            weight = weight_of(found[pins.id], pins.variables)
            self._by_pins.keep(pins.id, found[pins.id], weight=weight)
        return found


async def _single(db: Db, node_version_id: UUID) -> Definition:
    versions = await pins_of.get_whole_versions(db, [node_version_id])
    return single.definition_of(versions[node_version_id])


def weight_of(plan: Plan, variables: Mapping[str, str]) -> int:
    """Return the size of a plan in the cache, in kilobytes."""
    return len(plan.places) + sum(len(text) for text in variables.values()) // 1024


def _versions_of(plan: Plan) -> set[UUID]:
    """Return the Python node versions of a plan and its sub-workflows."""
    own = {place.node_version_id for place in plan.places if place.kind is Kind.PYTHON}
    return own.union(*(_versions_of(place.sub) for place in plan.places if place.sub is not None))


async def unlocked(db: Db, plans: Iterable[Plan], known: set[UUID]) -> set[UUID]:
    """Return node versions of plans that are locked, without those in `known`."""
    wanted: set[UUID] = set().union(*(_versions_of(plan) for plan in plans)) - known
    if not wanted:
        return set()
    locks = await definitions.get_locks(db, wanted)
    return {each.node_version_id for each in locks if each.state in _READY_STATES}
