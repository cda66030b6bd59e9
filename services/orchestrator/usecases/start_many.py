"""Starts many executions in one call; what they have in common is looked up once.

They begin together, in one flush if they fit. Those that this does not settle (a business key held
by another run, a workflow that keeps changing) are then started one by one, so that each gets the
same answer as in a call of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

from services.kit.caller import Caller
from services.kit.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    QflowError,
    QuotaExceeded,
)
from services.orchestrator.domain.options import NO_WISHES, Wishes
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import RunStatus
from services.orchestrator.engine.callers import NotStarted
from services.orchestrator.storage.executions import Execution
from services.orchestrator.usecases.launch import (
    Launch,
    Started,
    earlier_requests,
    launch_many,
)
from services.orchestrator.usecases.start import Known, Starter, digest_of_start

# Attempts to start all together; the rest is started one by one.
_TRIES_MAX: Final = 2
# Concurrency one by one: so many share a flush, and leave connections to other calls.
_AT_ONCE: Final = 16
# How many are checked per turn of the event loop: a few milliseconds.
_SLICE: Final = 100
# Errors that a repeated request does not get: it gets the answer of the first.
_ANSWERED_BEFORE: Final = (NotFound, FailedPrecondition, InvalidArgument, QuotaExceeded)


class Asked(NamedTuple):
    """One start of many."""

    workflow_id: UUID
    version: int
    input_json: str
    request_id: UUID | None = None
    alias: str = ""
    wishes: Wishes = NO_WISHES
    validate_only: bool = False

    @property
    def named(self) -> tuple[UUID, int, str]:
        """The workflow with the requested version and alias."""
        return self.workflow_id, self.version, self.alias

    def digest(self) -> str:
        """Return the digest, to compare starts with the same request id."""
        named = self.alias or self.version
        return digest_of_start(self.workflow_id, named, self.input_json, self.wishes)


class Begun(NamedTuple):
    """The run that a start returns, with the few fields of a bulk response."""

    execution_id: UUID | None  # None with `validate_only`
    status: RunStatus
    workflow_version: int | None
    existing: bool = False


Answer: TypeAlias = Begun | QflowError


async def start_one(starter: Starter, caller: Caller, asked: Asked) -> Started:
    """Start a single execution."""
    return await starter.start(
        caller,
        asked.workflow_id,
        asked.version,
        asked.input_json,
        asked.request_id,
        alias=asked.alias,
        wishes=asked.wishes,
        validate_only=asked.validate_only,
    )


async def start_many(starter: Starter, caller: Caller, asked: Sequence[Asked]) -> list[Answer]:
    """Start executions; returns an answer for each, once all that began are committed."""
    batch = _Batch(starter, caller, asked)
    alone = {at for at, each in enumerate(asked) if each.validate_only} | not_first(asked)
    left = [at for at in range(len(asked)) if at not in alone]
    for _ in range(_TRIES_MAX):
        if left:
            left = await batch.together(left)
        keyed = {at for at in left if asked[at].wishes.options.business_key is not None}
        alone |= keyed
        left = [at for at in left if at not in keyed]
    await batch.one_by_one(sorted(alone.union(left)))
    return [batch.answers[at] for at in range(len(asked))]


def not_first(asked: Sequence[Asked]) -> set[int]:
    """Return the indexes of starts whose business key an earlier one has: they come later."""
    seen: set[tuple[UUID, str]] = set()
    found = set()
    for at, each in enumerate(asked):
        key = each.wishes.options.business_key
        if key is not None:
            found |= {at} if (each.workflow_id, key) in seen else set()
            seen.add((each.workflow_id, key))
    return found


class _Batch:
    """The starts of one call by index, and their answers."""

    def __init__(self, starter: Starter, caller: Caller, asked: Sequence[Asked]) -> None:
        self.answers: dict[int, Answer] = {}
        self._starter = starter
        self._caller = caller
        self._asked = asked

    async def together(self, places: Sequence[int]) -> list[int]:
        """Start all of these together; returns those that the flush refused, to retry."""
        launches, faults = await self._fitting(places)
        told: Sequence[Run | NotStarted | QflowError]
        try:
            told = await launch_many(self._starter.engine, self._caller, launches.values())
        except QflowError as error:  # none of them was started
            told = [error] * len(launches)
        refused = []
        for at, what in zip(launches, told, strict=True):
            if isinstance(what, Run):
                self.answers[at] = Begun(what.id, what.status, what.plan.workflow_version)
            elif isinstance(what, NotStarted):
                refused.append(at)
            elif isinstance(what, _ANSWERED_BEFORE):
                faults[at] = what
            else:
                self.answers[at] = what
        earlier = await self._earlier([*refused, *faults])
        self.answers |= faults | earlier
        for at in refused:
            asked, plan = self._asked[at], launches[at].plan
            version = (plan.workflow_version or 0) if asked.alias else asked.version
            self._starter.forget(self._caller, asked.workflow_id, version)
        return [at for at in refused if at not in earlier]

    async def _fitting(
        self, places: Sequence[int]
    ) -> tuple[dict[int, Launch], dict[int, QflowError]]:
        """Return the plans of starts, looked up once per workflow, after checking inputs."""
        launches: dict[int, Launch] = {}
        faults: dict[int, QflowError] = {}
        plans: dict[tuple[UUID, int, str], Known | QflowError] = {}
        fresh: set[tuple[UUID, int, str]] = set()
        for number, at in enumerate(places, 1):
            asked = self._asked[at]
            known = plans.get(asked.named)
            if known is None:
                known = plans[asked.named] = await self._known(asked)
            fitted = await self._fitted(known, asked)
            if isinstance(fitted, QflowError) and asked.named not in fresh:
                fresh.add(asked.named)  # what does not fit a stale plan may fit the current one
                known = plans[asked.named] = await self._known(asked, fresh=True)
                fitted = await self._fitted(known, asked)
            if isinstance(fitted, QflowError):
                faults[at] = fitted
            else:
                launches[at] = fitted
            if not number % _SLICE:
                await asyncio.sleep(0)  # let streams and timers run
        return launches, faults

    async def _known(self, asked: Asked, *, fresh: bool = False) -> Known | QflowError:
        try:
            return await self._starter.known(self._caller, *asked.named, fresh=fresh)
        except QflowError as error:
            return error

    async def _fitted(self, known: Known | QflowError, asked: Asked) -> Launch | QflowError:
        """Return what to launch, or why this plan refuses it."""
        if isinstance(known, QflowError):
            return known
        try:
            await self._starter.check_inputs(known.plan, asked.input_json)
        except InvalidArgument as error:
            return error
        return Launch(
            plan=known.plan,
            input_json=asked.input_json,
            request_id=asked.request_id,
            digest=asked.digest() if asked.request_id else "",
            wishes=asked.wishes,
            current=known.current,
            follows=known.follows,
            alias=asked.alias,
        )

    async def _earlier(self, places: Iterable[int]) -> dict[int, Answer]:
        """Return the answers of starts whose request id has been used before."""
        by_request: dict[UUID, list[int]] = {}
        for at in places:
            request_id = self._asked[at].request_id
            if request_id is not None:
                by_request.setdefault(request_id, []).append(at)
        answers: dict[int, Answer] = {}
        try:
            found = await earlier_requests(self._starter.api_pool, self._caller, by_request)
        except QflowError as error:
            return {at: error for places in by_request.values() for at in places}
        for request_id, earlier in found.items():
            for at in by_request[request_id]:  # several in a batch may have the same id
                again = earlier.answer(self._asked[at].digest())
                answers[at] = _again(again) if isinstance(again, Execution) else again
        return answers

    async def one_by_one(self, places: Sequence[int]) -> None:
        """Start each on its own; those with the same business key in order."""
        lines: dict[object, list[int]] = {}
        for at in places:
            asked = self._asked[at]
            key = asked.wishes.options.business_key
            lines.setdefault(at if key is None else (asked.workflow_id, key), []).append(at)
        room = asyncio.Semaphore(_AT_ONCE)

        async def go(line: Sequence[int]) -> None:
            for at in line:
                async with room:
                    self.answers[at] = await self._alone(self._asked[at])

        async with asyncio.TaskGroup() as tasks:
            for line in lines.values():
                tasks.create_task(go(line))

    async def _alone(self, asked: Asked) -> Answer:
        try:
            run, plan, existing = await start_one(self._starter, self._caller, asked)
        except QflowError as error:
            return error
        checked = asked.validate_only and not existing
        run_id = None if checked else run.id
        return Begun(run_id, run.status, plan.workflow_version, existing)


def _again(earlier: Execution) -> Begun:
    return Begun(earlier.id, earlier.status, earlier.workflow_version, existing=True)
