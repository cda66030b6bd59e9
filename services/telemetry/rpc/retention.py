"""RetentionService."""

from __future__ import annotations

from typing import Final

from qflow.telemetry.v1 import retention_service_pb2 as pb
from qflow.telemetry.v1.retention_service_pb2_grpc import RetentionServiceServicer

from services.kit.caller import current_caller
from services.kit.rpc.call import Context
from services.kit.rpc.codec import timestamp, uuid_from
from services.kit.rpc.pages import Pages
from services.kit.rpc.request_key import answered, request_key
from services.telemetry.domain.retention import Due, RetentionRun
from services.telemetry.usecases.retention import Retention, RuleInForce, etag_of

_STATES: Final = {
    "asked": pb.RETENTION_RUN_STATE_ASKED,
    "running": pb.RETENTION_RUN_STATE_RUNNING,
    "completed": pb.RETENTION_RUN_STATE_COMPLETED,
    "failed": pb.RETENTION_RUN_STATE_FAILED,
    "interrupted": pb.RETENTION_RUN_STATE_INTERRUPTED,
}


class RetentionServicer(RetentionServiceServicer):
    """Serves retention rules and passes."""

    def __init__(self, retention: Retention) -> None:
        self._retention = retention

    async def ListRetentionRules(
        self, request: pb.ListRetentionRulesRequest, context: Context
    ) -> pb.ListRetentionRulesResponse:
        """See the contract."""
        found = await self._retention.rules(current_caller())
        return pb.ListRetentionRulesResponse(rules=[_rule_to_pb(each) for each in found])

    async def SetRetentionRule(
        self, request: pb.SetRetentionRuleRequest, context: Context
    ) -> pb.SetRetentionRuleResponse:
        """See the contract."""
        answer = await self._retention.set_rule(
            current_caller(),
            request.subject,
            keep_days=request.keep_days,
            etag=request.etag,
            key=request_key(request, "telemetry.SetRetentionRule", _set),
        )
        return answered(pb.SetRetentionRuleResponse, answer, _set)

    async def ResetRetentionRule(
        self, request: pb.ResetRetentionRuleRequest, context: Context
    ) -> pb.ResetRetentionRuleResponse:
        """See the contract."""
        answer = await self._retention.reset_rule(
            current_caller(),
            request.subject,
            etag=request.etag,
            key=request_key(request, "telemetry.ResetRetentionRule", _reset),
        )
        return answered(pb.ResetRetentionRuleResponse, answer, _reset)

    async def PreviewRetention(
        self, request: pb.PreviewRetentionRequest, context: Context
    ) -> pb.PreviewRetentionResponse:
        """See the contract."""
        found = await self._retention.due()
        return pb.PreviewRetentionResponse(due=[_due_to_pb(each) for each in found])

    async def StartRetention(
        self, request: pb.StartRetentionRequest, context: Context
    ) -> pb.StartRetentionResponse:
        """See the contract."""
        answer = await self._retention.start(
            current_caller(), key=request_key(request, "telemetry.StartRetention", _started)
        )
        return answered(pb.StartRetentionResponse, answer, _started)

    async def GetRetentionRun(
        self, request: pb.GetRetentionRunRequest, context: Context
    ) -> pb.GetRetentionRunResponse:
        """See the contract."""
        run_id = uuid_from(request.retention_run_id, field="retention_run_id")
        run = await self._retention.run(current_caller(), run_id)
        return pb.GetRetentionRunResponse(run=_run_to_pb(run))

    async def ListRetentionRuns(
        self, request: pb.ListRetentionRunsRequest, context: Context
    ) -> pb.ListRetentionRunsResponse:
        """See the contract."""
        pages = Pages("telemetry.ListRetentionRuns", request)
        found = await self._retention.runs(
            current_caller(), after=pages.after_moment(), limit=pages.limit
        )
        shown, token = await pages.cut(
            found, encode=_run_to_pb, key=lambda run: (run.created_at, run.id)
        )
        return pb.ListRetentionRunsResponse(runs=shown, next_page_token=token)


def _set(rule: RuleInForce) -> pb.SetRetentionRuleResponse:
    return pb.SetRetentionRuleResponse(rule=_rule_to_pb(rule))


def _reset(rule: RuleInForce) -> pb.ResetRetentionRuleResponse:
    return pb.ResetRetentionRuleResponse(rule=_rule_to_pb(rule))


def _started(run: RetentionRun) -> pb.StartRetentionResponse:
    return pb.StartRetentionResponse(run=_run_to_pb(run))


def _rule_to_pb(found: RuleInForce) -> pb.RetentionRule:
    return pb.RetentionRule(
        subject=found.rule.subject,
        deployment_keep_days=found.deployment_days or 0,
        tenant_keep_days=0 if found.own is None else found.own.keep_days,
        settable=found.rule.by_tenant,
        setting="" if found.deployment_days is None else found.rule.setting,
        etag=etag_of(found.own),
    )


def _due_to_pb(due: Due) -> pb.DueRecords:
    return pb.DueRecords(
        subject=due.subject,
        count=due.count or 0,
        has_more=due.has_more,
        undecided=due.count is None,
    )


def _run_to_pb(run: RetentionRun) -> pb.RetentionRun:
    return pb.RetentionRun(
        id=str(run.id),
        state=_STATES[run.state],
        create_time=timestamp(run.created_at),
        start_time=timestamp(run.started_at),
        end_time=timestamp(run.ended_at),
        requested_by=str(run.requested_by or ""),
        removed=[
            pb.RemovedRecords(
                subject=each.subject,
                row_count=each.rows,
                incomplete=each.is_incomplete,
                fault=each.fault,
                batch_count=each.batches,
                longest_batch_ms=each.longest_ms,
            )
            for each in run.removed
        ],
    )
