"""MetricService."""

from __future__ import annotations

import time
from typing import Final

from google.rpc import status_pb2
from qflow.telemetry.v1 import metric_service_pb2 as pb
from qflow.telemetry.v1.metric_service_pb2_grpc import MetricServiceServicer

from services.kit.caller import current_caller
from services.kit.errors import InvalidArgument, NotFound
from services.kit.pg import Pool
from services.kit.rpc.call import Context
from services.kit.rpc.codec import uuid_or_none
from services.kit.rpc.errors import to_status
from services.kit.rpc.request_key import answered, request_key
from services.telemetry.domain.points import Refusal, Series
from services.telemetry.usecases.record import Recorded, record_points

_NANOS: Final = 1_000_000_000
_NEVER_US: Final = 1 << 62  # for an invalid time: too far ahead to be recorded


class MetricServicer(MetricServiceServicer):
    """Records metrics measured by callers."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def RecordMetrics(
        self, request: pb.RecordMetricsRequest, context: Context
    ) -> pb.RecordMetricsResponse:
        """See the contract."""
        now_us = time.time_ns() // 1000
        recorded = await record_points(
            self._pool,
            current_caller(),
            [_series(each, now_us) for each in request.series],
            now_us=now_us,
            key=request_key(request, "telemetry.RecordMetrics", _to_pb),
        )
        return answered(pb.RecordMetricsResponse, recorded, _to_pb)


def _series(series: pb.MetricSeries, now_us: int) -> Series:
    return Series(
        name=series.metric_name,
        unit=series.metric_unit,
        execution_id=uuid_or_none(series.execution_id, field="execution_id"),
        keeps_points=series.keep_points,
        values=[point.metric_value for point in series.points],
        times_us=[_time_us(point, now_us) for point in series.points],
    )


def _time_us(point: pb.MetricPoint, now_us: int) -> int:
    # Read without decoding, since there may be ten thousand, with arbitrary values.
    moment = point.record_time
    seconds = moment.seconds
    if not seconds and not point.HasField("record_time"):
        return now_us
    if not 0 <= moment.nanos < _NANOS:
        return _NEVER_US
    return seconds * 1_000_000 + moment.nanos // 1000


def _to_pb(recorded: Recorded) -> pb.RecordMetricsResponse:
    return pb.RecordMetricsResponse(
        recorded_count=recorded.count,
        rejected_count=recorded.refused_count,
        rejected=[
            pb.RejectedPoint(
                series_index=each.series_index,
                point_index=-1 if each.point_index is None else each.point_index,
                status=_status(each),
            )
            for each in recorded.refusals
        ],
    )


def _status(refusal: Refusal) -> status_pb2.Status:
    kind = NotFound if refusal.is_missing else InvalidArgument
    status = to_status(kind(refusal.reason, refusal.text))
    del status.details[1:]
    return status
