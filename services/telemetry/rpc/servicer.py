"""TelemetryService."""

from __future__ import annotations

from qflow.telemetry.v1 import telemetry_service_pb2 as pb
from qflow.telemetry.v1.telemetry_service_pb2_grpc import TelemetryServiceServicer

from services.kit.caller import current_caller
from services.kit.pg import Pool
from services.kit.rpc.call import Context
from services.kit.rpc.codec import uuid_or_none
from services.kit.rpc.pages import Pages
from services.telemetry.rpc import codec
from services.telemetry.usecases import lists


class TelemetryServicer(TelemetryServiceServicer):
    """Serves lists of records."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def ListMetrics(
        self, request: pb.ListMetricsRequest, context: Context
    ) -> pb.ListMetricsResponse:
        """See the contract."""
        execution_id = uuid_or_none(request.execution_id, field="execution_id")
        pages = Pages("ListMetrics", request, execution_id, request.metric_name)
        found = await lists.list_metrics(
            self._pool,
            current_caller(),
            execution_id=execution_id,
            name=request.metric_name,
            after=pages.after_moment(),
            limit=pages.limit,
        )
        shown, token = await pages.cut(
            found,
            encode=codec.metric_to_pb,
            key=lambda metric: (metric.recorded_at, metric.id),
        )
        return pb.ListMetricsResponse(metrics=shown, next_page_token=token)

    async def ListErrors(
        self, request: pb.ListErrorsRequest, context: Context
    ) -> pb.ListErrorsResponse:
        """See the contract."""
        execution_id = uuid_or_none(request.execution_id, field="execution_id")
        pages = Pages("ListErrors", request, execution_id, request.filter)
        found = await lists.list_errors(
            self._pool,
            current_caller(),
            filter_text=request.filter,
            execution_id=execution_id,
            after=pages.after_moment(),
            limit=pages.limit,
        )
        shown, token = await pages.cut(
            found, encode=codec.error_to_pb, key=lambda error: (error.created_at, error.id)
        )
        return pb.ListErrorsResponse(errors=shown, next_page_token=token)

    async def ListHealthSamples(
        self, request: pb.ListHealthSamplesRequest, context: Context
    ) -> pb.ListHealthSamplesResponse:
        """See the contract."""
        pages = Pages("ListHealthSamples", request)
        found = await lists.list_health_samples(
            self._pool, current_caller(), after=pages.after_moment(), limit=pages.limit
        )
        shown, token = await pages.cut(
            found, encode=codec.sample_to_pb, key=lambda sample: (sample.recorded_at, sample.id)
        )
        return pb.ListHealthSamplesResponse(samples=shown, next_page_token=token)
