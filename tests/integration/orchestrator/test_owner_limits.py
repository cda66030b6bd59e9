"""Limits of one user and of each, and turns: who floods a team holds none of its others up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import pytest
from google.protobuf.duration_pb2 import Duration
from qflow.orchestrator.v1 import execution_service_pb2 as pb
from qflow.orchestrator.v1 import explain_service_pb2, limit_service_pb2
from qflow.orchestrator.v1.execution_service_pb2_grpc import ExecutionServiceStub
from qflow.orchestrator.v1.explain_service_pb2_grpc import ExplainServiceStub
from qflow.orchestrator.v1.limit_service_pb2_grpc import LimitServiceStub

from tests import factories
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import refusal
from tests.integration.orchestrator.test_limits import (
    LIMITED,
    TENANT,
    WORKFLOW,
    never,
    slots,
    succeed,
    x_of,
)
from tests.integration.orchestrator.test_team_runs import workflow_of


@dataclass
class Member:
    """A user of the team, and what they do there."""

    orchestra: Orchestra
    user: factories.User
    team: UUID
    workflow: str

    @property
    def _acting(self) -> dict[str, Any]:
        return {"metadata": (("qflow-tenant", str(self.team)),)}

    async def limit(self, **said: Any) -> limit_service_pb2.Limit:
        """Limit something of the team."""
        stub: Any = LimitServiceStub(self.orchestra.channel(self.user.token))
        request = limit_service_pb2.CreateLimitRequest(**{"name": "few", **said})
        made: limit_service_pb2.Limit = (await stub.CreateLimit(request, **self._acting)).limit
        return made

    async def start(self, *xs: int) -> list[str]:
        """Start runs of the team's workflow."""
        stub: Any = ExecutionServiceStub(self.orchestra.channel(self.user.token))
        started = []
        for x in xs:
            request = pb.StartExecutionRequest(workflow_id=self.workflow, input_json=f'{{"x":{x}}}')
            answer = await stub.StartExecution(request, **self._acting)
            started.append(answer.execution.id)
        return started

    async def held_up_by(self, run: str) -> list[str]:
        """Give what ExplainExecution says of the limits that a run waits for."""
        stub: Any = ExplainServiceStub(self.orchestra.channel(self.user.token))
        request = explain_service_pb2.ExplainExecutionRequest(execution_id=run)
        answer = await stub.ExplainExecution(request, **self._acting)
        held = [each.message for each in answer.reasons if each.cause == LIMITED]
        return [each.partition(";")[0] for each in held]


@pytest.fixture
def both(orchestra: Orchestra) -> tuple[Member, Member]:
    """Two users of one team."""
    other = factories.user(orchestra.sql)
    team = factories.team(orchestra.sql, admin=orchestra.owner, user=other)
    workflow = workflow_of(orchestra, team)
    loud, quiet = (Member(orchestra, user, team, workflow) for user in (orchestra.owner, other))
    return loud, quiet


async def test_each_owner_has_places_of_their_own_also_after_a_restart(
    orchestra: Orchestra, both: tuple[Member, Member]
) -> None:
    """I9, I32."""
    loud, quiet = both
    async with orchestra.running():
        made = await loud.limit(
            target=WORKFLOW, workflow_id=loud.workflow, max_running=1, per_owner=True
        )
        assert (True, "") == (made.per_owner, made.owner_id)
        runner = await orchestra.runner(never)
        async with runner.attached():
            runs = await loud.start(0, 1, 2)
            await quiet.start(10, 11)
            await runner.until(lambda: [0, 10] == sorted(map(x_of, runner.held.values())))
            assert ["the run waits for a place under the limit few"] == (
                await loud.held_up_by(runs[1])
            )
            await slots(orchestra, 2)
    async with orchestra.running():
        again = await orchestra.runner(never)
        again.incarnation, again.held = runner.incarnation, runner.held
        async with again.attached():
            await slots(orchestra, 2)
            for pair in ([1, 11], [2]):
                succeed(again, again.held.values())
                await again.until(
                    lambda pair=pair: pair == sorted(map(x_of, again.held.values()))  # type: ignore[misc]
                )
            succeed(again, again.held.values())
            await slots(orchestra, 0)


async def test_a_limit_of_one_owner_holds_nobody_else_up(
    orchestra: Orchestra, both: tuple[Member, Member]
) -> None:
    loud, quiet = both
    async with orchestra.running():
        made = await quiet.limit(target=TENANT, max_running=1, owner_id=str(loud.user.id))
        assert str(loud.user.id) == made.owner_id
        runner = await orchestra.runner(never)
        async with runner.attached():
            runs = await loud.start(0, 1)
            await quiet.start(10, 11, 12)
            await runner.until(lambda: [0, 10, 11, 12] == sorted(map(x_of, runner.held.values())))
            assert ["they wait for places under the limit few"] == await loud.held_up_by(runs[1])


async def test_each_owner_has_a_rate_of_their_own(
    orchestra: Orchestra, both: tuple[Member, Member]
) -> None:
    loud, quiet = both
    async with orchestra.running():
        await loud.limit(
            target=TENANT, max_starts=1, period=Duration(seconds=86_400), per_owner=True
        )
        runner = await orchestra.runner(never)
        async with runner.attached():
            first, second = await loud.start(0, 1)
            await quiet.start(10)
            await runner.until(lambda: [0, 10] == sorted(map(x_of, runner.held.values())))
            assert [] == await loud.held_up_by(first)
            assert 1 == len(await loud.held_up_by(second))
    keys = orchestra.rows("SELECT key FROM limit_buckets")
    assert {(str(each.user.id),) for each in both} == set(keys)


@pytest.mark.parametrize("limited", [False, True])
async def test_one_run_of_an_owner_begins_soon_while_another_floods_their_team(
    orchestra: Orchestra, both: tuple[Member, Member], *, limited: bool
) -> None:
    """I35: where runners are few, and where places are, however many counts those are of."""
    loud, quiet = both
    async with orchestra.running():
        if limited:
            await loud.limit(name="one", target=TENANT, max_running=1)
            await loud.limit(target=TENANT, max_running=1, key_expression="input.x")
        runner = await orchestra.runner(never, slots=8 if limited else 1)
        async with runner.attached():
            await loud.start(*range(30))
            await runner.until(lambda: 1 == len(runner.held))
            await quiet.start(100)
            for count in (2, 3):
                succeed(runner, runner.held.values())
                await runner.until(lambda count=count: count == len(runner.assigns))  # type: ignore[misc]
    assert 100 in map(x_of, runner.assigns)


async def test_the_owner_of_a_limit_is_somebody_of_the_tenant(
    orchestra: Orchestra, both: tuple[Member, Member]
) -> None:
    """X14: who is not in it is as somebody who is not there."""
    loud, quiet = both
    stranger = factories.user(orchestra.sql)
    async with orchestra.running():
        for of in (stranger.id, uuid4()):
            refused = await refusal(loud.limit(target=TENANT, max_running=1, owner_id=str(of)))
            assert ("NOT_FOUND", "MEMBER_NOT_FOUND") == refused[:2]
        both_said = loud.limit(
            target=TENANT, max_running=1, owner_id=str(quiet.user.id), per_owner=True
        )
        assert ("INVALID_ARGUMENT", "INVALID_REQUEST") == (await refusal(both_said))[:2]
        stub: Any = LimitServiceStub(orchestra.channel(loud.user.token))
        request = limit_service_pb2.CreateLimitRequest(
            name="mine", target=TENANT, max_running=1, owner_id=str(loud.user.id)
        )
        mine = (await stub.CreateLimit(request)).limit  # in the tenant that is theirs alone
        assert str(loud.user.id) == mine.owner_id
