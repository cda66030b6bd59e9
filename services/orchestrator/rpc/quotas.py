"""QuotaService: shows and sets the quotas of tenants, and shows their usage."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import grpc
from qflow.orchestrator.v1 import quota_pb2, quota_service_pb2_grpc
from qflow.orchestrator.v1 import quota_service_pb2 as pb

from services.kit.caller import current_caller
from services.kit.rpc import codec
from services.kit.rpc.request_key import answered, request_key
from services.orchestrator.rpc.amounts import US
from services.orchestrator.storage.quotas import Numbers
from services.orchestrator.usecases.quotas import Account, QuotaKeeper

Context = grpc.aio.ServicerContext[Any, Any]


class QuotaServicer(quota_service_pb2_grpc.QuotaServiceServicer):
    """Decodes, calls one use case, encodes."""

    def __init__(self, keeper: QuotaKeeper) -> None:
        self._keeper = keeper

    async def GetQuota(self, request: pb.GetQuotaRequest, context: Context) -> pb.GetQuotaResponse:
        """Return the quota of the caller's tenant."""
        caller = current_caller()
        found = await self._keeper.get(caller, caller.tenant_id)
        return pb.GetQuotaResponse(quota=_quota(found))

    async def GetTenantQuota(
        self, request: pb.GetTenantQuotaRequest, context: Context
    ) -> pb.GetTenantQuotaResponse:
        """Return the quota of any tenant."""
        found = await self._keeper.get(current_caller(), _tenant(request.tenant_id))
        return pb.GetTenantQuotaResponse(quota=_quota(found))

    async def SetTenantQuota(
        self, request: pb.SetTenantQuotaRequest, context: Context
    ) -> pb.SetTenantQuotaResponse:
        """Set the quota of a tenant."""
        answer = await self._keeper.set(
            current_caller(),
            _tenant(request.tenant_id),
            _numbers(request.quota),
            etag=request.etag,
            key=request_key(request, "orchestrator.SetTenantQuota", _set),
        )
        return answered(pb.SetTenantQuotaResponse, answer, _set)


def _tenant(text: str) -> UUID:
    return codec.uuid_from(text, field="tenant_id")


def _numbers(said: quota_pb2.Quota) -> Numbers:
    return Numbers(
        executions_running=said.executions_running or None,
        executions_per_day=said.executions_per_day or None,
        nodes_per_day=said.per_day.nodes or None,
        cpu_s_per_day=said.per_day.cpu_seconds or None,
        gb_s_per_day=said.per_day.gb_seconds or None,
        execution_nodes=said.per_execution.nodes or None,
        execution_cpu_s=said.per_execution.cpu_seconds or None,
        execution_gb_s=said.per_execution.gb_seconds or None,
        moved_bytes_per_day=said.per_day.moved_bytes or None,
        execution_moved_bytes=said.per_execution.moved_bytes or None,
        stored_bytes=said.stored_bytes or None,
        stored_files=said.stored_files or None,
        environments=said.environments or None,
        environment_bytes=said.environment_bytes or None,
    )


def _set(account: Account) -> pb.SetTenantQuotaResponse:
    return pb.SetTenantQuotaResponse(quota=_quota(account))


def _quota(account: Account) -> quota_pb2.TenantQuota:
    quota, used = account
    said = quota.numbers
    return quota_pb2.TenantQuota(
        tenant_id=str(quota.tenant_id),
        quota=quota_pb2.Quota(
            executions_running=said.executions_running or 0,
            executions_per_day=said.executions_per_day or 0,
            per_day=quota_pb2.ResourceAmounts(
                nodes=said.nodes_per_day or 0,
                cpu_seconds=said.cpu_s_per_day or 0,
                gb_seconds=said.gb_s_per_day or 0,
                moved_bytes=said.moved_bytes_per_day or 0,
            ),
            per_execution=quota_pb2.ResourceAmounts(
                nodes=said.execution_nodes or 0,
                cpu_seconds=said.execution_cpu_s or 0,
                gb_seconds=said.execution_gb_s or 0,
                moved_bytes=said.execution_moved_bytes or 0,
            ),
            stored_bytes=said.stored_bytes or 0,
            stored_files=said.stored_files or 0,
            environments=said.environments or 0,
            environment_bytes=said.environment_bytes or 0,
        ),
        usage=quota_pb2.QuotaUsage(
            executions_running=used.executions_running,
            executions=used.executions,
            nodes=used.nodes,
            cpu_seconds=used.cpu_us / US,
            gb_seconds=used.gb_us / US,
            moved_bytes=used.moved_bytes,
            stored_bytes=used.stored_bytes,
            stored_files=used.stored_files,
            environments=used.environments,
            environment_bytes=used.environment_bytes,
        ),
        etag=quota.etag,
        updated_by="" if quota.updated_by is None else str(quota.updated_by),
        update_time=codec.timestamp(quota.updated_at),
    )
