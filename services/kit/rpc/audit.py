"""Audits every call that may change something, once it has ended, with the resources it named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from itertools import chain
from operator import attrgetter
from typing import Any, Final, TypeAlias
from uuid import UUID

import orjson
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.message import Message
from qflow.auth.v1 import auth_pb2

from services.kit import audit
from services.kit.audit import Changes, Record, Recorder
from services.kit.errors import QflowError
from services.kit.rpc.call import Call, Handle, Method, Received
from services.kit.rpc.errors import code_of

_NOBODY: Final = UUID(int=0)
_TARGETS_MAX: Final = 100
_TEXT_CHARS_MAX: Final = 200
# Fields of a changed resource that are recorded; its definition is kept in its versions.
_SHOWN: Final = ("id", "name", "version", "current_version", "etag", "status", "active", "role")
_READS: Final = 1  # idempotency_level NO_SIDE_EFFECTS

Pick: TypeAlias = Callable[[Any], Iterable[Any]]


def changes(method: MethodDescriptor) -> bool:
    """Return whether calls of an RPC are audited: those of users that are not marked read-only."""
    rule: auth_pb2.AuthRule = method.GetOptions().Extensions[auth_pb2.rule]
    meant = {*rule.audiences} - {auth_pb2.AUDIENCE_SERVICE}
    return bool(meant) and int(method.GetOptions().idempotency_level) != _READS


class Notes:
    """Audits how each call of a method ended, if it reached its servicer.

    Calls refused before that, as malformed or not allowed, changed nothing and are left out. Of
    anonymous calls only those that succeeded are recorded, without an actor.
    """

    def __init__(self, method: Method, recorder: Recorder) -> None:
        assert method.rule is not None
        self._resources = [
            (each.kind, _picker(each.field, method.request)) for each in method.rule.resources
        ]
        self._recorder = recorder

    def begin(self) -> Changes:
        """Check that a record can be queued, before anything changes; collect the changes."""
        self._recorder.check_room()
        return audit.begin_changes()

    def end(
        self,
        call: Call,
        told: Changes,
        *,
        message: Message | None,
        answer: Message | None,
        error: BaseException | None,
    ) -> None:
        """Queue the record of a call that ended."""
        outcome = "OK" if error is None else code_of(error).name
        reason = error.reason if isinstance(error, QflowError) else ""
        if not _left_out(call, outcome, message):
            ended = (outcome, reason)
            self._recorder.add(
                _record(call, ended, message, answer, told, resources=self._resources)
            )


def stage(inner: Handle, method: Method, recorder: Recorder) -> Handle:
    """Audit how each call ended: see `Notes`."""
    notes = Notes(method, recorder)

    async def handle(call: Call, request: Any) -> Any:
        told, answer, failed = notes.begin(), None, None
        try:
            answer = await inner(call, request)
        except BaseException as error:
            failed = error
            raise
        finally:
            message = request.message if isinstance(request, Received) else None
            notes.end(call, told, message=message, answer=answer, error=failed)
        return answer

    return handle


def _left_out(call: Call, outcome: str, message: Message | None) -> bool:
    if outcome == "INVALID_ARGUMENT" or (call.caller is None and outcome != "OK"):
        return True
    return bool(getattr(message, "validate_only", False))


def _record(
    call: Call,
    end: tuple[str, str],
    message: Message | None,
    answer: Message | None,
    told: Changes,
    *,
    resources: Sequence[tuple[str, Pick]],
) -> Record:
    caller, (outcome, reason) = call.caller, end
    # Deduplicated: an unchecked batch may name one resource a thousand times.
    named: dict[tuple[str, str], None] = {}
    for kind, pick in resources if message is not None else ():
        for value in pick(message):
            if value:
                named[kind, value[:_TEXT_CHARS_MAX].replace("\0", "")] = None
    targets = [{"kind": kind, "id": value} for kind, value in named]
    before, after = told.before, _shown(answer)
    after.update(told.after)
    etag = getattr(message, "etag", "")
    if etag:
        before["etag"] = str(etag)[:_TEXT_CHARS_MAX]
    return Record(
        tenant_id=_NOBODY if caller is None else caller.tenant_id,
        actor_id=_NOBODY if caller is None else caller.user_id,
        session_id=_NOBODY if caller is None else caller.session_id,
        method=call.method.name,
        outcome=outcome,
        reason=reason,
        targets=_json(targets[:_TARGETS_MAX]),
        before=_json(before),
        after=_json(after),
        call_id=call.id,
        occurred_at=datetime.now(UTC),
    )


def _shown(answer: Message | None) -> dict[str, Any]:
    """Return the fields to record of the resource in a response; nothing of lists and scalars."""
    if answer is None:
        return {}
    part, names = _part_of(answer)
    if not part or not answer.HasField(part):
        return {}
    thing = getattr(answer, part)
    return {name: _plain(getattr(thing, name)) for name in names}


def _part_of(answer: Message) -> tuple[str, Sequence[str]]:
    """Return the field of a response that holds a resource with an id, and its fields to record."""
    found = _PARTS.get(type(answer))
    if found is None:
        found = "", ()
        for each in answer.DESCRIPTOR.fields:
            if each.message_type is None or each.is_repeated:
                continue
            fields = each.message_type.fields_by_name
            if "id" in fields:
                found = each.name, [name for name in _SHOWN if _is_plain(fields, name)]
                break
        _PARTS[type(answer)] = found
    return found


_PARTS: Final[dict[type[Message], tuple[str, Sequence[str]]]] = {}


def _is_plain(fields: Any, name: str) -> bool:
    return name in fields and fields[name].message_type is None and not fields[name].is_repeated


def _plain(value: Any) -> Any:
    return value[:_TEXT_CHARS_MAX] if isinstance(value, str) else value


def _picker(path: str, descriptor: Descriptor) -> Pick:
    """Return a function that yields the texts at a dotted path of a message, through lists."""
    first, _, rest = path.partition(".")
    field = descriptor.fields_by_name[first]
    listed = attrgetter(first)
    values: Pick = listed if field.is_repeated else lambda message: (listed(message),)
    if not rest:
        return values
    assert field.message_type is not None, path
    further = _picker(rest, field.message_type)
    return lambda message: chain.from_iterable(map(further, values(message)))


def _json(value: Any) -> str:
    if not value:
        return "{}" if isinstance(value, dict) else "[]"
    return orjson.dumps(value, default=str).decode()
