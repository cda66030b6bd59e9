"""Codec for the analysis of a node's change."""

from __future__ import annotations

from datetime import datetime
from typing import Final
from uuid import UUID

from qflow.registry.v1 import node_impact_pb2 as pb
from qflow.registry.v1 import node_service_pb2 as rpc

from services.kit.rpc.sizes import ANSWER_BYTES_MAX, FRAME_BYTES
from services.registry.domain.impact import SHOWN_MAX, Impact
from services.registry.rpc.node_codec import node_to_pb
from services.registry.rpc.workflow_codec import connection_to_pb, findings_to_pb
from services.registry.usecases.impact import Analysis, Touched

_IMPACTS: Final = {
    Impact.NONE: pb.IMPACT_NONE,
    Impact.CONVERTS: pb.IMPACT_CONVERTS,
    Impact.BREAKS: pb.IMPACT_BREAKS,
}


def analysis_to_pb(
    analysis: Analysis,
) -> tuple[rpc.AnalyzeNodeChangeResponse, tuple[datetime, UUID] | None]:
    """Encode as much as fits one message; returns it with the row after which to continue."""
    answer = analysis.answer
    message = rpc.AnalyzeNodeChangeResponse(
        node=node_to_pb(answer.node, answer.diagnostics, with_code=False),
        same_signature=analysis.same_signature,
    )
    room = ANSWER_BYTES_MAX - message.ByteSize()
    last = None
    for each in analysis.touched:
        shown = _touched_to_pb(each)
        room -= shown.ByteSize() + FRAME_BYTES
        if last is not None and room < 0:
            return message, last
        message.workflows.append(shown)
        last = each.workflow.created_at, each.workflow.id
    return message, analysis.last


def _touched_to_pb(touched: Touched) -> pb.WorkflowImpact:
    workflow, difference = touched.workflow, touched.difference
    return pb.WorkflowImpact(
        workflow_id=str(workflow.id),
        name=workflow.name,
        version=workflow.version,
        active=workflow.is_active,
        impact=_IMPACTS[difference.impact],
        places=touched.places[:SHOWN_MAX],
        edges=[
            pb.EdgeChange(
                place=each.place,
                before=connection_to_pb(each.before),
                after=connection_to_pb(each.after),
            )
            for each in difference.edges
        ],
        findings=findings_to_pb(difference.findings),
        schedules=[
            pb.ScheduleImpact(schedule_id=str(each.id), name=each.name, paused=each.is_paused)
            for each in touched.starters.schedules
        ],
        triggers=[
            pb.TriggerImpact(trigger_id=str(each.id), name=each.name, paused=each.is_paused)
            for each in touched.starters.triggers
        ],
        aliases=touched.starters.aliases,
    )
