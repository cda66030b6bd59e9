"""TelemetryService."""

from __future__ import annotations

from qflow.telemetry.v1 import telemetry_service_pb2 as pb
from qflow.telemetry.v1.telemetry_service_pb2_grpc import TelemetryServiceServicer

from services.kit.caller import current_caller
from services.kit.pg import Pool
from services.kit.rpc.call import Context
from services.kit.rpc.codec import uuid_or_none
from services.telemetry.rpc import codec
from services.telemetry.usecases import lists


class TelemetryServicer(TelemetryServiceServicer):
    """Reads what was recorded, for users."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def ListMetrics(
        self, request: pb.ListMetricsRequest, context: Context
    ) -> pb.ListMetricsResponse:
        """See the contract."""
        found, token = await lists.list_metrics(
            self._pool,
            current_caller(),
            execution_id=uuid_or_none(request.execution_id, field="execution_id"),
            name=request.metric_name,
            size=request.page_size,
            token=request.page_token,
        )
        return pb.ListMetricsResponse(
            metrics=[codec.metric_to_pb(metric) for metric in found], next_page_token=token
        )

    async def ListErrors(
        self, request: pb.ListErrorsRequest, context: Context
    ) -> pb.ListErrorsResponse:
        """See the contract."""
        found, token = await lists.list_errors(
            self._pool,
            current_caller(),
            execution_id=uuid_or_none(request.execution_id, field="execution_id"),
            size=request.page_size,
            token=request.page_token,
        )
        return pb.ListErrorsResponse(
            errors=[codec.error_to_pb(error) for error in found], next_page_token=token
        )

    async def ListHealthSamples(
        self, request: pb.ListHealthSamplesRequest, context: Context
    ) -> pb.ListHealthSamplesResponse:
        """See the contract."""
        found, token = await lists.list_health_samples(
            self._pool, current_caller(), size=request.page_size, token=request.page_token
        )
        return pb.ListHealthSamplesResponse(
            samples=[codec.sample_to_pb(sample) for sample in found], next_page_token=token
        )
