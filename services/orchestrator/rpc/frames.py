"""Packs commands for a runner into frames."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final
from uuid import UUID

from qflow.isolation.v1 import isolation_pb2
from qflow.orchestrator.v1 import attach_service_pb2 as pb

from services.orchestrator.domain.commands import AckCommand, KillCommand, SupersededCommand
from services.orchestrator.domain.values import FilePart, Spliced
from services.orchestrator.engine.streams import (
    Assignment,
    Command,
    Definition,
    Demand,
    Outgoing,
    Owned,
    Peers,
)

FRAME_BYTES_MAX: Final = 256 * 1024
KILL_GRACE_MS: Final = 2000

_REUSES: Final = {
    name.removeprefix("REUSE_").lower(): number for name, number in isolation_pb2.Reuse.items()
}
_NETWORKS: Final = {
    name.removeprefix("NETWORK_").lower(): number for name, number in isolation_pb2.Network.items()
}


def frames_of(commands: Sequence[Outgoing]) -> Iterable[pb.AttachResponse]:
    """Pack commands into frames, in order, each below the size limit unless one command exceeds it.

    A runner reads the assignments of a frame last. So a definition that reuses a number, or a
    command about an attempt, must not be in the same frame as an assignment queued before it.
    """
    frame, size = pb.AttachResponse(), 0
    meant: set[int | UUID] = set()  # definitions and attempts of the frame's assignments
    for command in commands:
        cost = _cost(command)
        follows = meant and not isinstance(command, Assignment) and _subject(command) in meant
        if size and (size + cost > FRAME_BYTES_MAX or follows):
            yield frame
            frame, size, meant = pb.AttachResponse(), 0, set()
        size += cost
        if isinstance(command, Assignment):
            _add_assignment(frame.assignments.add(), command)
            meant.update((command.definition, command.attempt_ref))
        else:
            _add(frame, command)
    if size:
        yield frame


def _subject(command: Definition | Command) -> int | UUID | None:
    match command:
        case Definition():
            return command.number
        case Peers() | Demand():
            return None
        case _:
            return command.attempt_ref


def _cost(command: Outgoing) -> int:
    """Estimate the encoded size of a command in bytes."""
    match command:
        case Assignment():
            inline = sum([len(value) for value in command.values if isinstance(value, bytes)])
            return 100 + 150 * len(command.values) + inline + 3 * len(command.progress)
        case Definition():
            return 500 + sum(len(each.source_type_json) + 300 for _, each in command.inputs)
        case Peers():
            return 8 + sum(len(each) + 4 for each in command.addresses)
        case Owned():
            return 80
        case _:
            return 40


def _add(frame: pb.AttachResponse, command: Definition | Command) -> None:
    match command:
        case AckCommand():
            ack = frame.acks.add()
            ack.attempt_ref, ack.token = command.attempt_ref.bytes, command.token
        case SupersededCommand():
            frame.superseded.add(attempt_ref=command.attempt_ref.bytes, token=command.token)
        case KillCommand():
            frame.kills.add(
                attempt_ref=command.attempt_ref.bytes, token=command.token, grace_ms=KILL_GRACE_MS
            )
        case Owned():
            frame.owners.add(
                attempt_ref=command.attempt_ref.bytes,
                token=command.token,
                member_id=str(command.member_id),
            )
        case Peers():
            frame.peers.CopyFrom(pb.RunnerPeers(addresses=command.addresses))
        case Demand():
            frame.demand.waiting = command.waiting
        case Definition():
            frame.definitions.add(
                definition=command.number,
                node_version_id=command.place.node_version_id.bytes,
                tenant_id=command.tenant_id.bytes,
                node_id=command.place.id,
                inputs=[
                    pb.AttemptInputBinding(
                        name=binding.name,
                        conversion=binding.conversion,
                        source_type_json=binding.source_type_json,
                    )
                    for _, binding in command.inputs
                ],
                outputs=command.place.outputs,
                timeout_ms=command.place.timeout_ms,
                memory_limit_bytes=command.place.memory_bytes,
                python_version=command.place.python_version,
                limits=pb.AttemptLimits(**command.place.limits) if command.place.limits else None,
                reuse=_REUSES.get(command.place.reuse, isolation_pb2.REUSE_UNSPECIFIED),
                heartbeat_timeout_ms=command.place.heartbeat_timeout_ms or 0,
                network=_NETWORKS.get(command.place.network, isolation_pb2.NETWORK_UNSPECIFIED),
                egress_hosts=command.place.egress_hosts,
                concurrency=command.place.concurrency,
            )


def _add_assignment(message: pb.AttemptAssignment, command: Assignment) -> None:
    """Encode an assignment field by field: keyword arguments take twice as long."""
    message.attempt_ref = command.attempt_ref.bytes
    message.token = command.token
    message.definition = command.definition
    message.execution_id = command.run_id.bytes
    message.attempt = command.attempt
    for value in command.values:
        given = message.inputs.add()
        if isinstance(value, bytes):
            given.json = value
        else:
            assert not isinstance(value, Spliced), "such values are pulled"
            given.file.CopyFrom(file_to_pb(value))
    if command.pull:
        message.pull = True
    if command.progress:
        message.progress_json = command.progress
    if command.traceparent:
        message.traceparent = command.traceparent


def file_to_pb(part: FilePart) -> pb.AttemptValueFile:
    """Encode the file that holds a part of a value."""
    return pb.AttemptValueFile(
        file_id=part.file.file_id.bytes,
        size_bytes=part.file.size_bytes,
        sha256=part.file.sha256,
        field=part.field,
        index=part.index,
    )
