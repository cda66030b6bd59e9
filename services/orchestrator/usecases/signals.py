"""Words from outside: signals and the answers of approvals, each taken once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import structlog
from qflow.types import Type, ValueTextError, check_value, expression, parse_strict

from services.kit.caller import Caller
from services.kit.errors import (
    AlreadyExists,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    ResourceExhausted,
)
from services.kit.ids import uuid7
from services.kit.pg import as_caller
from services.orchestrator.domain.plan import Kind
from services.orchestrator.domain.state import Run, Signal, UnreadableError
from services.orchestrator.storage import signals
from services.orchestrator.storage.signals import WaitRow
from services.orchestrator.usecases.controls import Controls

log = structlog.get_logger()

EARLY_MAX: Final = 1000  # words of one run that nobody took yet
WAITS_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class Waiting:
    """A node that waits for somebody."""

    node_id: str
    name: str
    kind: Kind
    type_expression: str
    subject_json: str
    row: WaitRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is said to an approval."""

    name: str
    approved: bool
    comment: str
    reply_json: str


@dataclass(frozen=True, slots=True)
class Messenger:
    """What bringing words needs."""

    controls: Controls

    async def send(
        self,
        caller: Caller,
        execution_id: UUID,
        name: str,
        payload_json: str,
        request_id: UUID | None,
    ) -> str:
        """Bring a word; returns the node that took it, empty while none has."""
        run, earlier = await self._begin(caller, execution_id, request_id)
        text = payload_json or "null"
        types = _types_of(run, name, Kind.SIGNAL)
        if types is None:
            raise _unknown(run, name, Kind.SIGNAL)
        for each in types:
            _check("payload_json", each, text)
        signal = Signal(request_id or uuid7(), caller.user_id, (text.encode(),))
        if earlier is not None:
            return _same(earlier, name, signal)
        if sum(len(words) for words in run.signals.values()) >= EARLY_MAX:
            raise ResourceExhausted(
                "SIGNALS_WAIT",
                f"{EARLY_MAX} signals wait to be taken; send more once nodes have taken some",
                retry_after_s=1.0,
            )
        return await self._bring(run, name, signal)

    async def answer(
        self, caller: Caller, execution_id: UUID, answer: Answer, request_id: UUID | None
    ) -> str:
        """Answer an approval that waits; returns the node that took it."""
        run, earlier = await self._begin(caller, execution_id, request_id)
        text = answer.reply_json or "null"
        types = _types_of(run, answer.name, Kind.APPROVAL)
        if types is None:
            raise _unknown(run, answer.name, Kind.APPROVAL)
        for each in types if answer.reply_json or answer.approved else ():
            _check("reply_json", each, text)
        outputs = (
            b"true" if answer.approved else b"false",
            json.dumps(answer.comment, ensure_ascii=False).encode(),
            json.dumps(str(caller.user_id)).encode(),
            text.encode(),
        )
        signal = Signal(request_id or uuid7(), caller.user_id, outputs, Kind.APPROVAL)
        if earlier is not None:
            return _same(earlier, answer.name, signal)
        if not run.waiting.get((Kind.APPROVAL, answer.name)):
            fault = f"no approval {answer.name} waits now; ListWaits shows what does"
            raise FailedPrecondition(
                "APPROVAL_NOT_WAITING",
                f"name: {fault}",
                fields=[FieldViolation("name", fault, "APPROVAL_NOT_WAITING")],
            )
        return await self._bring(run, answer.name, signal)

    async def waits(self, caller: Caller, execution_id: UUID) -> list[Waiting]:
        """Give what a run waits for now."""
        run = await self.controls.open_run(caller, execution_id)
        slots = [slot for each in run.waiting.values() for slot in each][:WAITS_MAX]
        slots.sort(key=lambda slot: run.records[slot].order if run.records[slot] else 0)  # type: ignore[union-attr]
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

    async def _begin(
        self, caller: Caller, execution_id: UUID, request_id: UUID | None
    ) -> tuple[Run, signals.SignalRow | None]:
        earlier = None
        if request_id is not None:
            async with as_caller(self.controls.reader.api_pool, caller) as db:
                earlier = await signals.find(db, request_id)
        return await self.controls.open_run(caller, execution_id), earlier

    async def _bring(self, run: Run, name: str, signal: Signal) -> str:
        engine = self.controls.engine
        transitions = engine.core.signal(run.id, name, signal)
        taken = [write.node_id for t in transitions for write in t.signals]
        await engine.change(run.id, transitions)
        node_id = next((each for each in taken if each), "")
        log.info("signal_sent", execution_id=str(run.id), signal=name, node_id=node_id)
        return node_id


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
    """Give the types that nodes of a name take; None where there is no such node."""
    rules = [
        place.wait
        for place in run.plan.places
        if place.kind is kind and place.wait is not None and place.wait.name == name
    ]
    return [rule.type for rule in rules if rule.type is not None] if rules else None


def _check(field: str, of: Type, text: str) -> None:
    try:
        wrong = check_value(of, parse_strict(text))
    except ValueTextError as error:
        raise _invalid(field, "VALUE_INVALID", error.path, error.message) from None
    if wrong is not None:
        raise _invalid(field, "TYPE_MISMATCH", wrong.path, wrong.message)


def _unknown(run: Run, name: str, kind: Kind) -> InvalidArgument:
    names = sorted(
        {
            place.wait.name
            for place in run.plan.places
            if place.kind is kind and place.wait is not None
        }
    )
    has = f"it has {', '.join(names[:10])}" if names else "it has none"
    return _invalid("name", f"{kind.upper()}_UNKNOWN", "", f"the run has no {kind} {name}; {has}")


def _same(earlier: signals.SignalRow, name: str, signal: Signal) -> str:
    """Give what became of an equal word that was sent before."""
    payload = (b"[" + b",".join(signal.outputs) + b"]").decode()
    if (earlier.name, earlier.payload, earlier.sent_by) != (name, payload, signal.sent_by):
        raise AlreadyExists(
            "REQUEST_ID_REUSED", "request_id was used to send something else; use a new one"
        )
    return earlier.node_id or ""


def _invalid(field: str, reason: str, path: str, fault: str) -> InvalidArgument:
    place = f"{field}.{path}" if path else field
    return InvalidArgument(
        reason, f"{place}: {fault}", fields=[FieldViolation(place, fault, reason)]
    )
