"""The inputs of a schedule's runs: those of the schedule, and the time of the tick."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Final
from uuid import UUID

from qflow.types import Type, check_value, expression

from services.kit.caller import Caller
from services.kit.errors import invalid
from services.orchestrator.domain.firing import check_object
from services.orchestrator.domain.timing import Timing, time_texts
from services.orchestrator.storage.recovery import join_object, split_object
from services.orchestrator.usecases.start import Starter

_FIELD: Final = "definition.timing.time_input"


async def inputs_at(
    starter: Starter,
    caller: Caller,
    workflow_id: UUID,
    version: int,
    said: str,
    *,
    alias: str,
    timing: Timing,
    tick_at: datetime,
) -> str:
    """Return the inputs of the run that a tick starts, by the types of the version to start now."""
    if not timing.time_input:
        return said
    known = await starter.known(caller, workflow_id, version, alias, fresh=True)
    types = {each.name: each.type for each in known.plan.inputs}
    return with_time(said, types, timing, tick_at)


def with_time(said: str, types: Mapping[str, Type], timing: Timing, tick_at: datetime) -> str:
    """Add the time of a tick to the inputs; raises if the input for it does not take one."""
    name = timing.time_input
    if name not in types:
        there = ", ".join(types) or "none"
        fault = f"{name!r} is no input of the workflow (there: {there})"
        raise invalid(_FIELD, "INPUT_UNKNOWN", fault)
    check_object(said, field="input_json")
    given = split_object(said)
    if name in given:
        fault = f"{name} has a value in input_json, too: leave it out there"
        raise invalid(_FIELD, "INPUT_GIVEN", fault)
    for text in time_texts(timing, tick_at):
        if check_value(types[name], text, name) is None:
            given[name] = json.dumps(text).encode()
            break
    else:
        fault = f"{name} takes {expression(types[name])}: a time is a datetime, a date or a str"
        raise invalid(_FIELD, "TYPE_MISMATCH", fault)
    return join_object(given)
