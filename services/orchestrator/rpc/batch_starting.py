"""Conversion of a batch of starts; each is checked and answered on its own."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Final

from qflow.orchestrator.v1 import execution_service_pb2 as pb

from services.kit.audit import tell_change
from services.kit.caller import current_caller
from services.kit.errors import QflowError
from services.kit.rpc.errors import to_status
from services.kit.rpc.validate import check_item
from services.orchestrator.rpc import codec
from services.orchestrator.rpc.starting import asked_from
from services.orchestrator.usecases.start import Starter
from services.orchestrator.usecases.start_many import Answer, Asked, start_many

# How many starts are decoded per turn of the event loop: a few milliseconds.
_SLICE: Final = 200
# Size limits of the refusals in a response, which is limited to 4 MiB.
_REFUSALS_BYTES_MAX: Final = 3 * 1024 * 1024
_REFUSAL_BYTES_MAX: Final = 6 * 1024
_TOLD_MAX: Final = 100


async def start_batch(
    starter: Starter, starts: Sequence[pb.StartExecutionRequest]
) -> pb.BatchStartExecutionsResponse:
    """Start the valid ones; returns an answer for each."""
    asked: dict[int, Asked] = {}
    answers: dict[int, Answer] = {}
    for at, request in enumerate(starts):
        try:
            check_item(request)
            asked[at] = asked_from(request)
        except QflowError as error:
            answers[at] = error
        if at % _SLICE == _SLICE - 1:
            await asyncio.sleep(0)
    began = await start_many(starter, current_caller(), list(asked.values()))
    answers |= zip(asked, began, strict=True)
    _tell(answers.values())
    room = min(_REFUSAL_BYTES_MAX, _REFUSALS_BYTES_MAX // len(starts))
    response = pb.BatchStartExecutionsResponse()
    for at in range(len(starts)):
        _put(response.items.add(), answers[at], room)
    return response


def _put(item: pb.BatchStartItem, answer: Answer, room: int) -> None:
    """Encode an answer in place: a separate message would be copied."""
    if isinstance(answer, QflowError):
        item.status.CopyFrom(to_status(answer, bytes_max=room))
        return
    item.status.SetInParent()
    item.execution_status = codec.RUN_STATUS[answer.status]
    if answer.execution_id is not None:
        item.execution_id = str(answer.execution_id)
    if answer.workflow_version is not None:
        item.workflow_version = answer.workflow_version
    if answer.existing:
        item.existing = True


def _tell(answers: Collection[Answer]) -> None:
    """Put the number of started runs and the ids of the first ones into the audit record."""
    begun = [each for each in answers if not isinstance(each, QflowError)]
    new = [str(each.execution_id) for each in begun if each.execution_id and not each.existing]
    told = {"began": len(new), "refused": len(answers) - len(begun)}
    tell_change({}, {**told, "execution_ids": new[:_TOLD_MAX]} if new else told)
