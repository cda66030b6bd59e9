"""DoctorService."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from google.protobuf.duration_pb2 import Duration
from qflow.telemetry.v1 import doctor_service_pb2 as pb
from qflow.telemetry.v1.doctor_service_pb2_grpc import DoctorServiceServicer

from services.kit.rpc.call import Context
from services.kit.rpc.codec import timestamp
from services.telemetry.domain.invariant import Finding, Verdict
from services.telemetry.usecases.doctor import Doctor

_BREACHES: Final = 20
_SETTLE_S: Final = 5.0
_VERDICTS: Final = {
    Verdict.HOLDS: pb.INVARIANT_VERDICT_HOLDS,
    Verdict.BROKEN: pb.INVARIANT_VERDICT_BROKEN,
    Verdict.UNDECIDED: pb.INVARIANT_VERDICT_UNDECIDED,
}


class DoctorServicer(DoctorServiceServicer):
    """Serves examinations of the database, for administrators."""

    def __init__(self, doctor: Doctor) -> None:
        self._doctor = doctor

    async def CheckInvariants(
        self, request: pb.CheckInvariantsRequest, context: Context
    ) -> pb.CheckInvariantsResponse:
        """See the contract."""
        began = datetime.now(UTC)
        settle = request.settle_time
        found = await self._doctor.examine(
            request.invariants,
            rows_max=request.max_breaches or _BREACHES,
            settle_s=settle.ToTimedelta().total_seconds()
            if request.HasField("settle_time")
            else _SETTLE_S,
        )
        return pb.CheckInvariantsResponse(
            findings=[_to_pb(each) for each in found],
            healthy=all(each.verdict is Verdict.HOLDS for each in found),
            start_time=timestamp(began),
        )


def _to_pb(finding: Finding) -> pb.InvariantFinding:
    taken = Duration()
    taken.FromMicroseconds(round(finding.duration_ms * 1000))
    return pb.InvariantFinding(
        invariant_id=finding.invariant.id,
        name=finding.invariant.name,
        title=finding.invariant.title,
        verdict=_VERDICTS[finding.verdict],
        breaches=[
            pb.InvariantBreach(place=each.place, key=each.what, facts=each.facts)
            for each in finding.breaches
        ],
        has_more=finding.has_more,
        query_time=taken,
    )
