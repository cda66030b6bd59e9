"""Look-ups in the result cache before nodes run, and results to store in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from services.orchestrator.domain.commands import CacheCommand
from services.orchestrator.domain.history import flow_rows
from services.orchestrator.domain.plan import Kind
from services.orchestrator.domain.records import NO_USAGE, NodeRecord
from services.orchestrator.domain.rows import NewId, NodeCopy
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NodeStatus
from services.orchestrator.domain.transition import Transition, more
from services.orchestrator.domain.values import FilePart, NodeOutput, Spliced, Value, file_of
from services.orchestrator.domain.writes import set_running, touch


class Ask(NamedTuple):
    """A node whose result may be in the cache."""

    run_id: UUID
    slot: int
    tenant_id: UUID
    node_version_id: UUID
    inputs_digest: str
    ttl_ms: int  # how old a result may be
    outputs: tuple[str, ...]  # names, in order


class Hit(NamedTuple):
    """A result that is in the cache."""

    node_execution_id: UUID  # the row that holds it
    output: NodeOutput


class Answer(NamedTuple):
    """The result of a look-up; without a digest the node's result is not stored either."""

    ask: Ask
    digest: str | None
    hit: Hit | None


def ask_for(run: Run, slot: int) -> Ask | None:
    """Return the look-up to make before a slot is dispatched; None if it is not cached."""
    place = run.place(slot)
    if place.cache_ttl_ms is None or place.kind is not Kind.PYTHON or place.grouped:
        return None
    digest = inputs_digest(run, slot)
    if digest is None:
        return None
    return Ask(
        run.id,
        slot,
        run.tenant_id,
        place.node_version_id,
        digest,
        # A run that ignores the cache still needs the digest: its results are stored for others.
        0 if run.options.ignores_cache else place.cache_ttl_ms,
        place.outputs,
    )


def inputs_digest(run: Run, slot: int) -> str | None:
    """Return a digest of all inputs of a slot; None if it cannot be computed.

    A value in a file is represented by the digest of the file.
    """
    digest = hashlib.sha256()
    for at, binding in sorted(enumerate(run.bindings(slot)), key=lambda each: each[1].name):
        value = run.value(slot, at)
        if value is None:
            continue
        parts = _parts(value)
        if parts is None:
            return None
        head = [binding.name, binding.conversion, binding.source_type_json, len(parts)]
        for part in (json.dumps(head).encode(), *parts):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
    return digest.hexdigest()


def _parts(value: Value) -> list[bytes] | None:
    pieces = value.pieces if isinstance(value, Spliced) else (value,)
    found = []
    for piece in pieces:
        if isinstance(piece, bytes):
            found.append(b"text" + piece)
        else:
            part = _file_part(piece)
            if part is None:
                return None
            found.append(part)
    return found


def _file_part(part: FilePart) -> bytes | None:
    if not part.file.sha256:
        return None  # the file's writer reported no digest
    where = json.dumps([part.file.sha256.hex(), part.file.size_bytes, part.field, part.index])
    return b"file" + where.encode()


@dataclass(slots=True)
class CacheQueue:
    """Pending look-ups, and the digests of misses, by run and slot."""

    wanted: dict[tuple[UUID, int], Ask] = field(default_factory=dict)
    digests: dict[UUID, dict[int, str | None]] = field(default_factory=dict)

    def asks(self, run: Run, slot: int) -> bool:
        """Return whether a slot has to wait for a look-up, which is then queued."""
        if (run.id, slot) in self.wanted:
            return True
        if slot in self.digests.get(run.id, ()) or run.records[slot] is not None:
            return False
        ask = ask_for(run, slot)
        if ask is None:
            return False
        self.wanted[run.id, slot] = ask
        return True

    def take(self, limit: int) -> list[Ask]:
        """Return pending look-ups, oldest first; they stay pending until answered."""
        return list(self.wanted.values())[:limit]

    def asked_of(self, run_id: UUID) -> list[int]:
        """Return the slots of a run with a pending look-up."""
        return [slot for of, slot in self.wanted if of == run_id]

    def answered(self, answer: Answer) -> bool:
        """Remove an answered look-up; returns whether it was still pending."""
        ask = answer.ask
        if self.wanted.get((ask.run_id, ask.slot)) is not ask:
            return False
        del self.wanted[ask.run_id, ask.slot]
        if answer.hit is None:
            self.digests.setdefault(ask.run_id, {})[ask.slot] = answer.digest
        return True

    def forget(self, run_id: UUID) -> None:
        """Forget a run."""
        self.digests.pop(run_id, None)
        self.unask(run_id)

    def unask(self, run_id: UUID) -> None:
        """Drop the pending look-ups of a run, but not its digests."""
        for key in [key for key in self.wanted if key[0] == run_id]:
            del self.wanted[key]

    def keep(self, run: Run, slot: int, output: NodeOutput) -> Iterator[CacheCommand]:
        """Yield the command to store the result of a completed slot, if it was looked up before.

        Results that refer to files are not stored: decided here, since rows may be encrypted.
        """
        digest = self.digests.get(run.id, {}).get(slot)
        record, place = run.records[slot], run.place(slot)
        if isinstance(output, tuple) and any(b'"$file"' in text for text in output):
            return  # the file could be deleted before the entry expires
        if digest is not None and record is not None and place.cache_ttl_ms is not None:
            yield CacheCommand(
                record.id, place.node_version_id, run.tenant_id, digest, place.cache_ttl_ms
            )


def complete(run: Run, slot: int, t: Transition, hit: Hit, *, new_id: NewId) -> None:
    """Complete a slot with a cached result, in a row that copies it."""
    run.revision += 1
    run.order += 1
    place = run.place(slot)
    record = run.records[slot] = NodeRecord(
        id=new_id(),
        order=run.order,
        status=NodeStatus.COMPLETED,
        token=0,
        revision=run.revision,
        cache_hit=True,
    )
    t.copy(
        NodeCopy(
            id=record.id,
            run_id=run.id,
            source_id=hit.node_execution_id,
            node_id=run.node_id(slot),
            definition_node_id=place.id,
            node_version_id=place.node_version_id,
            execution_order=record.order,
            first=bool(t.run_inserts),
            file_id=file_of(hit.output),
            revision=run.revision,
            cache_hit=True,
        )
    )
    set_running(run, t)
    t.begun = more(t.begun, record)
    flow_rows(run, slot, t, NO_USAGE, new_id)
    touch(run, slot, t)
