"""How many runners are placed on other machines, how large, and which are not wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from services.kit.env import EnvError
from services.runner.domain.limits import Asked
from services.runner.domain.placing import (
    TIER_LABEL,
    Machine,
    Placed,
    Size,
    Waiting,
    decide,
    environment_of,
    size_of,
    steady,
)
from services.runner.loops.placing import leave_when_idle
from services.runner.settings import RaySettings
from services.runner.usecases.placement import Placement

GIB = 1024**3
PLAIN = Size(cpus=1, memory_bytes=GIB)
GPU = Size(cpus=1, memory_bytes=GIB, gpus=1)


def there(*sizes: Size, begun: bool = True, ready: bool = True) -> list[Placed]:
    return [
        Placed(name=f"r{at}", size=size, begun=begun, ready=ready) for at, size in enumerate(sizes)
    ]


def test_a_node_gets_a_runner_of_what_it_asks_for_and_never_less_than_a_plain_one() -> None:
    assert PLAIN == size_of(Waiting(), PLAIN)
    assert GPU == size_of(Waiting(gpus=1), PLAIN)
    large = Waiting(cpus=8, memory_bytes=GIB // 2, labels=(("zone", "a"),), tier="T4")
    expected = Size(cpus=8, memory_bytes=GIB, labels=(("zone", "a"),), tier="T4")
    assert expected == size_of(large, PLAIN)


def test_a_tier_that_every_machine_has_asks_for_no_other_runner() -> None:
    assert PLAIN == size_of(Waiting(tier="T2"), PLAIN)
    assert "T2" == Machine(cpus=1, memory_bytes=0, labels={}).tier
    assert "T3" == Machine(cpus=1, memory_bytes=0, labels={TIER_LABEL: "T3"}).tier


def test_a_runner_takes_four_attempts_for_each_processor_and_one_for_each_gpu() -> None:
    assert 4 == PLAIN.slots
    assert 1 == GPU.slots


def test_the_first_runner_shows_whether_more_are_needed() -> None:
    assert [PLAIN] == decide({PLAIN: 1000}, [], runners_max=64).start
    assert [] == decide({PLAIN: 1000}, there(PLAIN, ready=False), runners_max=64).start


def test_runners_double_while_what_waits_needs_more() -> None:
    assert [PLAIN] * 2 == decide({PLAIN: 1000}, there(PLAIN, PLAIN), runners_max=64).start
    assert [PLAIN] == decide({PLAIN: 3}, there(PLAIN, PLAIN), runners_max=64).start


def test_there_are_never_more_runners_than_allowed_and_the_rarest_come_first() -> None:
    demand = {PLAIN: 1000, GPU: 1}
    assert [GPU] == decide(demand, there(PLAIN), runners_max=2).start
    assert [] == decide(demand, there(PLAIN, PLAIN), runners_max=2).start


def test_a_runner_without_a_machine_is_withdrawn_once_nothing_waits_for_it() -> None:
    waits = there(GPU, begun=False, ready=False)
    assert ["r0"] == decide({}, waits, runners_max=64).withdraw
    assert [] == decide({GPU: 1}, waits, runners_max=64).withdraw


def test_a_runner_that_has_a_machine_is_never_withdrawn() -> None:
    assert [] == decide({}, there(GPU, ready=False), runners_max=64).withdraw


def test_what_is_gone_a_moment_later_needs_no_runner() -> None:
    assert {PLAIN: 2} == steady({PLAIN: 5, GPU: 1}, {PLAIN: 2, Size(9, 9): 1})


def test_a_runner_is_told_its_size_and_caps_its_calls_by_it() -> None:
    told = environment_of(
        Size(cpus=2, memory_bytes=GIB, gpus=1, tier="T3"),
        caps=Asked(memory_bytes=2 * GIB, cpu_millicores=500),
        idle_s=60.0,
        addresses=["a:1", "b:2"],
    )
    assert {
        "QFLOW_RUNNER_PLACEMENT": "local",
        "QFLOW_RUNNER_SLOTS": "1",
        "QFLOW_RUNNER_CPUS": "2",
        "QFLOW_RUNNER_MEMORY_BYTES": str(GIB),
        "QFLOW_RUNNER_GPUS": "1",
        "QFLOW_RUNNER_IDLE_EXIT_S": "60",
        "QFLOW_ORCHESTRATOR_ATTACH_ADDRESS": "a:1,b:2",
        "QFLOW_NODE_MEMORY_BYTES_MAX": str(GIB),
        "QFLOW_NODE_CPU_MILLICORES_MAX": "500",
        "QFLOW_MINIMUM_TIER": "T3",
    } == told


class Engine:
    """Machines that do as they are told; a runner lives until the test ends it."""

    def __init__(self) -> None:
        self.runners: dict[str, Placed] = {}
        self.asked = 0

    async def machines(self) -> list[Machine]:
        return []

    def placed(self) -> Sequence[Placed]:
        return list(self.runners.values())

    async def start(self, size: Size, settings: Mapping[str, str]) -> str:
        assert {} == settings
        self.asked += 1
        name = f"r{self.asked}"
        self.runners[name] = Placed(name=name, size=size, begun=True, ready=True)
        return name

    async def withdraw(self, name: str) -> None:
        del self.runners[name]


async def test_runners_that_end_at_once_are_started_ever_more_seldom() -> None:
    """One machine that lacks something must not cost a start every quarter of a second."""
    engine, now = Engine(), [0.0]
    placement = Placement(
        engine,
        plain=PLAIN,
        runners_max=8,
        settings_of=lambda _: {},
        changed=asyncio.Event(),
        clock=lambda: now[0],
    )
    placement.hear("a", {Waiting(): 1})
    for _ in range(240):  # a minute
        await placement.look()
        engine.runners.clear()
        now[0] += 0.25
    assert 5 == engine.asked
    await placement.look()
    now[0] += 60
    await placement.look()
    await placement.look()
    assert engine.runners, "it goes on when the pause is over"


async def test_what_an_orchestrator_no_longer_tells_is_not_waited_for() -> None:
    engine = Engine()
    placement = Placement(
        engine, plain=PLAIN, runners_max=8, settings_of=lambda _: {}, changed=asyncio.Event()
    )
    placement.hear("a", {Waiting(): 1})
    await placement.look()
    placement.forget("a")
    await placement.look()
    assert {} == engine.runners


async def test_a_runner_leaves_when_nothing_came_for_its_time() -> None:
    stop, done = asyncio.Event(), 0
    leaving = asyncio.create_task(leave_when_idle(lambda: (False, done), 0.2, stop))
    for _ in range(8):  # each short call begins the time anew
        done += 1
        await asyncio.sleep(0.05)
    assert not stop.is_set()
    async with asyncio.timeout(30):
        await leaving
    assert stop.is_set()


def test_a_placement_that_does_not_exist_is_refused() -> None:
    with pytest.raises(EnvError, match="QFLOW_RUNNER_PLACEMENT must be local or ray"):
        RaySettings.from_env({"QFLOW_RUNNER_PLACEMENT": "moon"})
    assert RaySettings.from_env({}) is None
