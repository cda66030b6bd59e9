"""Signals and answers of approvals, each delivered once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final
from uuid import UUID, uuid5

import structlog
from qflow.types import Type, expression

from services.kit.caller import Caller
from services.kit.errors import (
    AlreadyExists,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    ResourceExhausted,
    invalid,
)
from services.kit.ids import uuid7
from services.kit.pg import as_caller
from services.orchestrator.domain.plan import Kind
from services.orchestrator.domain.state import Run, Signal
from services.orchestrator.domain.values import UnreadableError
from services.orchestrator.storage import signals
from services.orchestrator.storage.signals import SignalRow, WaitRow
from services.orchestrator.usecases.controls import Controls
from services.orchestrator.usecases.given_values import check, parsed

log = structlog.get_logger()

# Limits of the signals of a run that no node has taken yet, which are kept in memory.
EARLY_MAX: Final = 1000
EARLY_BYTES_MAX: Final = 4 * 1024 * 1024
WAITS_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class Waiting:
    """A node that waits for a signal or an approval."""

    node_id: str
    name: str
    kind: Kind
    type_expression: str
    subject_json: str
    row: WaitRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer of an approval."""

    name: str
    approved: bool
    comment: str
    reply_json: str


@dataclass(frozen=True, slots=True)
class Word:
    """A signal or answer to deliver."""

    execution_id: UUID
    kind: Kind  # of the nodes that take it
    name: str
    outputs: tuple[bytes, ...]
    check: Callable[[Run], None]  # raises if the run does not accept it now


@dataclass(frozen=True, slots=True)
class Messenger:
    """Delivers signals and answers."""

    controls: Controls
    # Deliveries in progress: a repeated call waits for the first one.
    under_way: dict[UUID, asyncio.Task[str]] = field(default_factory=dict, init=False)

    async def send(
        self,
        caller: Caller,
        execution_id: UUID,
        name: str,
        payload_json: str,
        request_id: UUID | None,
    ) -> str:
        """Send a signal; returns the node that took it, empty if none has yet."""
        text = payload_json or "null"
        check = partial(_check_sent, name=name, text=text)
        word = Word(execution_id, Kind.SIGNAL, name, (text.encode(),), check)
        return await self._bring(caller, word, request_id)

    async def answer(
        self, caller: Caller, execution_id: UUID, answer: Answer, request_id: UUID | None
    ) -> str:
        """Answer a waiting approval; returns its node."""
        outputs = (
            b"true" if answer.approved else b"false",
            json.dumps(answer.comment, ensure_ascii=False).encode(),
            json.dumps(str(caller.user_id)).encode(),
            (answer.reply_json or "null").encode(),
        )
        check = partial(_check_answer, answer=answer)
        word = Word(execution_id, Kind.APPROVAL, answer.name, outputs, check)
        return await self._bring(caller, word, request_id)

    async def waits(self, caller: Caller, execution_id: UUID) -> list[Waiting]:
        """Return what a run waits for now, longest first; empty once it has ended."""
        _, run = await self.controls.find_run(caller, execution_id)
        if run is None:
            return []
        slots = [slot for each in run.waiting.values() for slot in each]
        slots.sort(key=lambda slot: run.records[slot].order if run.records[slot] else 0)  # type: ignore[union-attr]
        del slots[WAITS_MAX:]
        ids = [record.id for slot in slots if (record := run.records[slot]) is not None]
        async with as_caller(self.controls.reader.api_pool, caller) as db:
            rows = await signals.get_waits(db, ids)
        return [
            found
            for slot in slots
            if (record := run.records[slot]) is not None
            and record.id in rows
            and (found := _waiting(run, slot, rows[record.id])) is not None
        ]

    async def _bring(self, caller: Caller, word: Word, request_id: UUID | None) -> str:
        if request_id is None:
            return await self._carry(caller, word, uuid7())
        word_id = word_id_of(caller, request_id)
        while (first := self.under_way.get(word_id)) is not None:
            await asyncio.wait([first])
        task = asyncio.create_task(self._once(caller, word, word_id, request_id))
        self.under_way[word_id] = task
        task.add_done_callback(lambda _: self.under_way.pop(word_id))
        # Shielded: the delivery goes on if the caller gives up, and may repeat the call.
        return await asyncio.shield(task)

    async def _once(self, caller: Caller, word: Word, word_id: UUID, request_id: UUID) -> str:
        """Deliver a signal, unless an equal request did before, even if the run has ended."""
        # Older rows have the request id itself as their id.
        earlier = await self._earlier(caller, (word_id, request_id))
        if earlier is not None:
            return _same(earlier, word)
        return await self._carry(caller, word, word_id)

    async def _carry(self, caller: Caller, word: Word, word_id: UUID) -> str:
        run = await self.controls.open_run(caller, word.execution_id)
        word.check(run)
        engine = self.controls.engine
        signal = Signal(word_id, caller.user_id, word.outputs, word.kind)
        transitions = engine.core.signal(run.id, word.name, signal)
        taken = [write.node_id for t in transitions for write in t.signals]
        await engine.change(run.id, transitions)
        node_id = next((each for each in taken if each), "")
        log.info("signal_sent", execution_id=str(run.id), signal=word.name, node_id=node_id)
        return node_id

    async def _earlier(self, caller: Caller, ids: Sequence[UUID]) -> SignalRow | None:
        async with as_caller(self.controls.reader.api_pool, caller) as db:
            return await signals.find(db, ids, caller.user_id)


def word_id_of(caller: Caller, request_id: UUID) -> UUID:
    """Return the id of a signal's row, derived from the caller and the request id."""
    return uuid5(caller.tenant_id, f"{caller.user_id} {request_id}")


def _waiting(run: Run, slot: int, row: WaitRow) -> Waiting | None:
    place = run.place(slot)
    if place.wait is None:
        return None
    try:
        subject = run.values(slot).get("subject", b"").decode()
    except UnreadableError:
        subject = ""
    of = place.wait.type
    shown = "" if of is None else expression(of)
    return Waiting(run.node_id(slot), place.wait.name, place.kind, shown, subject, row)


def _types_of(run: Run, name: str, kind: Kind) -> Sequence[Type] | None:
    """Return the types that the nodes with a name accept; None if there are none."""
    rules = [
        place.wait
        for place in run.plan.places
        if place.kind is kind and place.wait is not None and place.wait.name == name
    ]
    return [rule.type for rule in rules if rule.type is not None] if rules else None


def _unknown(run: Run, name: str, kind: Kind) -> InvalidArgument:
    names = sorted(
        {
            place.wait.name
            for place in run.plan.places
            if place.kind is kind and place.wait is not None
        }
    )
    has = f"it has {', '.join(names[:10])}" if names else "it has none"
    return invalid("name", f"{kind.upper()}_UNKNOWN", f"the run has no {kind} {name}; {has}")


def _check_sent(run: Run, name: str, text: str) -> None:
    types = _types_of(run, name, Kind.SIGNAL)
    if types is None:
        raise _unknown(run, name, Kind.SIGNAL)
    for each in types:
        check("payload_json", each, parsed("payload_json", text))
    if run.waiting.get((Kind.SIGNAL, name)):
        return  # it is taken at once
    early = [len(word.outputs[0]) for words in run.signals.values() for word in words]
    if len(early) >= EARLY_MAX or sum(early) + len(text.encode()) > EARLY_BYTES_MAX:
        raise ResourceExhausted(
            "SIGNALS_WAIT",
            f"{len(early)} signals of {sum(early)} bytes are queued, the maximum is {EARLY_MAX}"
            f" and {EARLY_BYTES_MAX}; send more once nodes have received some",
            retry_after_s=1.0,
        )


def _check_answer(run: Run, answer: Answer) -> None:
    types = _types_of(run, answer.name, Kind.APPROVAL)
    if types is None:
        raise _unknown(run, answer.name, Kind.APPROVAL)
    for each in types if answer.reply_json or answer.approved else ():
        check("reply_json", each, parsed("reply_json", answer.reply_json or "null"))
    if not run.waiting.get((Kind.APPROVAL, answer.name)):
        fault = f"no approval {answer.name} waits now; ListWaits shows what does"
        raise FailedPrecondition(
            "APPROVAL_NOT_WAITING",
            f"name: {fault}",
            fields=[FieldViolation("name", fault, "APPROVAL_NOT_WAITING")],
        )


def _same(earlier: SignalRow, word: Word) -> str:
    """Return the answer to a repeated call; raises `AlreadyExists` if it differs."""
    payload = (b"[" + b",".join(word.outputs) + b"]").decode()
    told = (earlier.workflow_execution_id, earlier.name, earlier.payload)
    if told != (word.execution_id, word.name, payload):
        raise AlreadyExists(
            "REQUEST_ID_REUSED",
            "request_id was used to send something else; use a new one",
            fields=[FieldViolation("request_id", "was used to send something else")],
        )
    return earlier.node_id or ""
