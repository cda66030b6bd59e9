"""AuditService."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import orjson
from qflow.registry.v1 import audit_service_pb2 as pb
from qflow.registry.v1 import audit_service_pb2_grpc as pb_grpc

from services.kit.caller import current_caller
from services.kit.pg import Pool
from services.kit.rpc import codec
from services.kit.rpc.pages import Pages
from services.registry.storage.audit_history import Asked, Kept, Seal
from services.registry.usecases import audit_history
from services.registry.usecases.audit_history import Fault, FaultKind

_KINDS: Final[Mapping[FaultKind, pb.AuditFaultKind.ValueType]] = {
    "digest": pb.AUDIT_FAULT_KIND_DIGEST,
    "link": pb.AUDIT_FAULT_KIND_LINK,
    "known_seal": pb.AUDIT_FAULT_KIND_KNOWN_SEAL,
}


class AuditServicer(pb_grpc.AuditServiceServicer):
    """Serves the audit history to administrators."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def ListAuditRecords(
        self, request: pb.ListAuditRecordsRequest, context: Any
    ) -> pb.ListAuditRecordsResponse:
        """See the contract."""
        asked = Asked(
            actor_id=codec.uuid_or_none(request.actor_id, field="actor_id"),
            tenant_id=codec.uuid_or_none(request.tenant_id, field="tenant_id"),
            method=request.method or None,
            since=_moment(request, "start_time"),
            before=_moment(request, "end_time"),
        )
        pages = Pages("registry.ListAuditRecords", request, asked)
        found = await audit_history.list_records(
            self._pool,
            current_caller(),
            asked,
            after=pages.after_values(datetime, UUID, int),
            limit=pages.limit,
        )
        shown, token = await pages.cut(found, encode=_record_to_pb, key=lambda kept: kept.place)
        return pb.ListAuditRecordsResponse(records=shown, next_page_token=token)

    async def ExportAuditRecords(
        self, request: pb.ExportAuditRecordsRequest, context: Any
    ) -> AsyncIterator[pb.ExportAuditRecordsResponse]:
        """See the contract."""
        since, before = (
            _moment(request, "start_time"),
            _moment(request, "end_time"),
        )
        assert since is not None
        assert before is not None
        async for part in audit_history.export_records(self._pool, current_caller(), since, before):
            yield pb.ExportAuditRecordsResponse(records=[_record_to_pb(kept) for kept in part])

    async def VerifyHistory(
        self, request: pb.VerifyHistoryRequest, context: Any
    ) -> pb.VerifyHistoryResponse:
        """See the contract."""
        known = [
            (
                codec.uuid_from(each.chain_id, field="known_seals.chain_id"),
                each.seal_number,
                each.digest,
            )
            for each in request.known_seals
        ]
        pages = Pages("registry.VerifyHistory", request)
        found = await audit_history.verify(
            self._pool,
            current_caller(),
            after=pages.after_values(UUID, int),
            limit=pages.limit - 1,
            known=known,
        )
        last = found.seals[-1] if found.more else None
        return pb.VerifyHistoryResponse(
            faults=[_fault_to_pb(each) for each in found.faults],
            checked_seal_count=len(found.seals),
            checked_record_count=found.records,
            latest_seals=[_seal_to_pb(each) for each in found.latest()],
            next_page_token="" if last is None else pages.token_after((last.chain_id, last.number)),
        )


def _moment(request: Any, field: str) -> datetime | None:
    if not request.HasField(field):
        return None
    return codec.moment_from(getattr(request, field), field=field)


def _fault_to_pb(fault: Fault) -> pb.AuditFault:
    return pb.AuditFault(
        chain_id=str(fault.chain_id), seal_number=fault.number, kind=_KINDS[fault.kind]
    )


def _seal_to_pb(seal: Seal) -> pb.AuditSeal:
    return pb.AuditSeal(
        chain_id=str(seal.chain_id), seal_number=seal.number, digest=bytes(seal.digest)
    )


def _record_to_pb(kept: Kept) -> pb.AuditRecord:
    record = kept.record
    return pb.AuditRecord(
        chain_id=str(kept.chain_id),
        record_number=kept.number,
        tenant_id=str(record.tenant_id),
        actor_id=str(record.actor_id),
        session_id=str(record.session_id),
        method=record.method,
        outcome=record.outcome,
        reason=record.reason,
        targets=[pb.AuditTarget(**each) for each in orjson.loads(record.targets)],
        before_json=record.before,
        after_json=record.after,
        call_id=record.call_id,
        end_time=codec.timestamp(record.occurred_at),
    )
