"""The frames of an Attach stream: encoded from, and decoded to, what the runner works with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final
from uuid import UUID

from qflow.failure.v1 import failure_pb2
from qflow.isolation.v1 import isolation_pb2
from qflow.orchestrator.v1 import attach_service_pb2 as pb

from services.kit.ids import uuid_from_bytes
from services.runner.domain.attempts import FileReference, Spliced
from services.runner.domain.frames import (
    Assignment,
    Definition,
    Finished,
    Greeting,
    Incoming,
    Kill,
    Outgoing,
    Owned,
    Value,
)
from services.runner.domain.limits import Asked
from services.runner.domain.network import Network, Reach
from services.runner.domain.reuse import Reuse

PROTOCOL: Final = 1
_FRAME_BYTES_MAX: Final = 256 * 1024
_CAUSES: Final = {
    "cause": failure_pb2.CAUSE_KIND_CAUSE,
    "context": failure_pb2.CAUSE_KIND_CONTEXT,
    "member": failure_pb2.CAUSE_KIND_MEMBER,
}


def hello(greeting: Greeting) -> pb.RunnerHello:
    """Return the first message of a stream."""
    inventory = [
        pb.RunnerInventoryItem(attempt_ref=ref.bytes, token=token, state=state)
        for items, state in (
            (greeting.running, pb.ATTEMPT_STATE_RUNNING),
            (greeting.finished, pb.ATTEMPT_STATE_FINISHED),
        )
        for ref, token in items
    ]
    return pb.RunnerHello(
        incarnation=str(greeting.incarnation),
        protocol=PROTOCOL,
        slots=greeting.slots,
        tiers=[isolation_pb2.Tier.Value(f"TIER_{tier.value}") for tier in greeting.tiers],
        pythons=greeting.pythons,
        inventory=inventory,
        labels=dict(greeting.machine.labels),
        cpus=greeting.machine.cpus,
        memory_bytes=greeting.machine.memory_bytes,
        gpus=greeting.machine.gpus,
        networks=[_NETWORK_NUMBERS[reach] for reach in greeting.machine.networks],
        lane=True,
    )


def frames(outgoing: Outgoing) -> Iterator[pb.AttachRequest]:
    """Yield frames, each under the size limit unless it has one larger result only."""
    frame = pb.AttachRequest()
    if outgoing.grant is not None:
        frame.grant.credits, frame.grant.grant_epoch = outgoing.grant
    for declined in outgoing.declines:
        frame.declines.add(
            attempt_ref=declined.attempt_ref.bytes, token=declined.token, reason=declined.reason
        )
    size = 64 * len(outgoing.declines)
    for finished in outgoing.results:
        result = frame.results.add()  # filled in place: appending a message copies it
        _fill(result, finished)
        cost = result.ByteSize() + 8
        if size and size + cost > _FRAME_BYTES_MAX:
            following = pb.AttachRequest(results=[result])
            del frame.results[-1]
            yield frame
            frame, size = following, 0
        size += cost
    yield frame


def _fill(result: pb.AttemptResult, finished: Finished) -> None:
    """Fill in a result, except for fields that are usually zero or empty."""
    outcome = finished.outcome
    usage = outcome.usage
    result.attempt_ref = finished.attempt_ref.bytes
    result.token = finished.token
    result.cpu_us = usage.cpu_us
    result.memory_peak_bytes = usage.memory_peak_bytes
    if usage.io_read_bytes or usage.io_write_bytes:
        result.io_read_bytes = usage.io_read_bytes
        result.io_write_bytes = usage.io_write_bytes
    result.user_us = usage.wall_us
    result.serialization_us = usage.serialization_us
    result.transfer_us = finished.transfer_us
    result.moved_bytes = finished.moved_bytes
    if outcome.stdout_tail or outcome.stderr_tail:
        result.stdout_tail = outcome.stdout_tail
        result.stderr_tail = outcome.stderr_tail
    if finished.container_id is not None:
        result.container_id = finished.container_id.bytes
    error = outcome.error
    if error is not None:
        result.failure.error_type = error.type.value
        result.failure.message = error.message
        result.failure.stack_trace = error.traceback
        result.failure.retryable = error.retryable
        result.failure.killed = finished.killed
        result.failure.exception_type = error.exception
        result.failure.input = error.input
        result.failure.progress_json = outcome.progress
        for cause in error.causes:
            result.failure.causes.add(
                kind=_CAUSES[cause.kind], exception_type=cause.exception, message=cause.message
            )
    elif finished.file is not None:
        file = result.success.file
        file.file_id = finished.file.file_id.bytes
        file.size_bytes = finished.file.size_bytes
        file.sha256 = bytes.fromhex(finished.file.sha256)
        file.counts.update(finished.file.counts)
    else:
        result.success.outputs.extend([text for _, text in outcome.outputs])
        result.success.SetInParent()


def incoming(frame: pb.AttachResponse) -> Incoming:
    """Decode a frame, skipping its empty parts, which are most."""
    incoming = Incoming(
        acks=_pairs(frame.acks), assignments=[_assignment(each) for each in frame.assignments]
    )
    if frame.definitions:
        incoming.definitions = [_definition(each) for each in frame.definitions]
    if frame.superseded:
        incoming.superseded = _pairs(frame.superseded)
    if frame.kills:
        incoming.kills = [
            Kill(uuid_from_bytes(each.attempt_ref), each.token, each.grace_ms / 1000)
            for each in frame.kills
        ]
    if frame.HasField("demand"):
        incoming.demand = frame.demand.waiting
    if frame.owners:
        incoming.owners = [
            Owned(uuid_from_bytes(each.attempt_ref), each.token, each.member_id)
            for each in frame.owners
        ]
    if frame.HasField("peers"):
        incoming.peers = tuple(frame.peers.addresses)
    return incoming


def _pairs(items: Sequence[Any]) -> list[tuple[UUID, int]]:
    return [(uuid_from_bytes(each.attempt_ref), each.token) for each in items]


_REUSES: Final = {isolation_pb2.Reuse.Value(f"REUSE_{each.name}"): each for each in Reuse}


_NETWORK_NUMBERS: Final = {
    reach: isolation_pb2.Network.Value(f"NETWORK_{reach.name}") for reach in Reach
}
_REACHES: Final = {number: reach for reach, number in _NETWORK_NUMBERS.items()}


def _definition(each: pb.AttemptDefinition) -> Definition:
    return Definition(
        number=each.definition,
        node_version_id=uuid_from_bytes(each.node_version_id),
        tenant_id=uuid_from_bytes(each.tenant_id),
        node_id=each.node_id,
        inputs=[(binding.name, binding.conversion) for binding in each.inputs],
        outputs=list(each.outputs),
        timeout_s=each.timeout_ms / 1000,
        limits=Asked(
            memory_bytes=each.memory_limit_bytes,
            processes=each.limits.processes,
            open_files=each.limits.open_files,
            temporary_bytes=each.limits.temporary_bytes,
            output_bytes=each.limits.output_bytes,
            cpu_millicores=each.limits.cpu_millicores,
        ),
        python_version=each.python_version,
        reuse=_REUSES.get(each.reuse, Reuse.WARM),
        heartbeat_timeout_s=each.heartbeat_timeout_ms / 1000,
        network=Network(_REACHES.get(each.network, Reach.NONE), tuple(each.egress_hosts)),
        concurrency=each.concurrency or 1,
    )


def _assignment(each: pb.AttemptAssignment) -> Assignment:
    """Decode an assignment; with positional arguments, which take half the time."""
    timeout_ms = each.timeout_ms
    return Assignment(
        uuid_from_bytes(each.attempt_ref),
        each.token,
        each.definition,
        uuid_from_bytes(each.execution_id),
        each.attempt,
        [value.json or _value(value) for value in each.inputs],  # no JSON text is empty
        each.pull,
        timeout_ms / 1000 if timeout_ms else 0.0,
        each.progress_json,
        each.traceparent,
    )


def _value(value: pb.AttemptValue) -> Value:
    match value.WhichOneof("place"):
        case "json":
            return value.json
        case "file":
            return file_from(value.file)
        case _:
            return None


def whole(pieces: list[bytes | FileReference]) -> Value:
    """Return a value received in parts: text, a reference to a file, or both in turn."""
    texts = [piece for piece in pieces if isinstance(piece, bytes)]
    if len(texts) == len(pieces):
        return b"".join(texts)
    return pieces[0] if len(pieces) == 1 else Spliced(pieces)


def file_from(file: pb.AttemptValueFile) -> FileReference:
    """Return a reference to a value in a file."""
    return FileReference(
        uuid_from_bytes(file.file_id),
        file.size_bytes,
        file.sha256.hex(),
        file.field,
        file.index if file.HasField("index") else None,
    )
