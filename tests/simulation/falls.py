"""Steps of runs that fall over half-way, as by a fault of the engine's own."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final
from unittest.mock import patch
from uuid import UUID

from services.kit.errors import Unavailable
from services.orchestrator.domain.core import Core
from services.orchestrator.engine.engine import Engine
from tests.simulation.processes import StrictEngine

_RATE: Final = 0.06


class Fall(Unavailable):
    """What a step falls over with: callers who are told of it try again."""


class Falls:
    """Which steps fall over: of a run with its sub-workflows at most one, or it would be ended."""

    def __init__(self, seed: int) -> None:
        self.hits: Counter[str] = Counter()
        self._chance = random.Random(seed)
        self._fallen: set[UUID] = set()

    def after(self, name: str, core: Core, run_id: UUID) -> None:
        """Fall over, perhaps, when a step has been taken."""
        root = core.root_of(run_id)
        if self._chance.random() < _RATE and root not in self._fallen:
            self._fallen.add(root)
            self.hits[name] += 1
            raise Fall("STEP_FELL", name)


def _of_run(core: Core, given: tuple[Any, ...]) -> UUID | None:
    run = given[0]
    return None if run is None else run.id


def _of_ref(core: Core, given: tuple[Any, ...]) -> UUID | None:
    known = core.find(getattr(given[1], "attempt_ref", given[1]))
    return None if known is None else known[0].id


# Steps of the core, and how their arguments say of which run they are.
_STEPS: Final[dict[str, Callable[[Core, tuple[Any, ...]], UUID | None]]] = {
    "_begin": _of_run,
    "_begin_child": lambda _, given: given[0].run.id,
    "_run_due": _of_run,
    "_take_outcome": _of_ref,
    "_agree": _of_ref,
    "_lose": _of_run,
    "_revive": _of_run,
    "_give_claimed": lambda _, given: given[0],
    "_queue": lambda _, given: given[0].run.id,
}


@contextmanager
def falling(seed: int) -> Iterator[Counter[str]]:
    """Have steps fall over in the world of a seed; gives which did, how often."""
    falls = Falls(seed)
    with ExitStack() as stack:
        for name, of in _STEPS.items():
            stack.enter_context(patch.object(Core, name, _step(name, of, falls)))
        send = Engine._send_assignment

        def sent(self: Engine, command: Any) -> None:
            send(self, command)
            if command.run_id in self.core.runs:
                falls.after("_send_assignment", self.core, command.run_id)

        stack.enter_context(patch.object(Engine, "_send_assignment", sent))
        # Worlds take any other fault for one of the engine's.
        stack.enter_context(patch.object(StrictEngine, "_read_faulty", Engine._read_faulty))
        yield falls.hits


def _step(name: str, of: Callable[[Core, tuple[Any, ...]], UUID | None], falls: Falls) -> Any:
    original = getattr(Core, name)

    def step(self: Core, *given: Any, **named: Any) -> Any:
        run_id = of(self, given)
        taken = original(self, *given, **named)
        if run_id is not None and run_id in self.runs:
            falls.after(name, self, run_id)
        return taken

    return step
