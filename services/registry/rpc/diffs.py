"""DiffService."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from qflow.registry.v1 import diff_service_pb2 as pb
from qflow.registry.v1 import diff_service_pb2_grpc as pb_grpc

from services.kit.caller import current_caller
from services.kit.rpc import codec
from services.kit.rpc.sizes import in_parts
from services.registry.domain.node_diff import Change
from services.registry.domain.text_diff import TextDiff
from services.registry.usecases import diffs
from services.registry.usecases.exchange import Exchange

_KINDS: Final = {
    "added": pb.CHANGE_KIND_ADDED,
    "removed": pb.CHANGE_KIND_REMOVED,
    "changed": pb.CHANGE_KIND_CHANGED,
}
_CHANGES_BYTES_MAX: Final = 1024 * 1024


class DiffServicer(pb_grpc.DiffServiceServicer):
    """Serves comparisons of versions."""

    def __init__(self, deps: Exchange) -> None:
        self._deps = deps

    async def DiffNodeVersions(
        self, request: pb.DiffNodeVersionsRequest, context: Any
    ) -> pb.DiffNodeVersionsResponse:
        """See the contract."""
        found = await diffs.diff_nodes(
            self._deps,
            current_caller(),
            codec.uuid_from(request.node_id, field="node_id"),
            (request.from_version, request.to_version),
        )
        return pb.DiffNodeVersionsResponse(
            changes=_changes(found.changes),
            source=_text(found.text),
            from_version=found.versions[0],
            to_version=found.versions[1],
        )

    async def DiffWorkflowVersions(
        self, request: pb.DiffWorkflowVersionsRequest, context: Any
    ) -> pb.DiffWorkflowVersionsResponse:
        """See the contract."""
        found = await diffs.diff_workflows(
            self._deps,
            current_caller(),
            codec.uuid_from(request.workflow_id, field="workflow_id"),
            (request.from_version, request.to_version),
        )
        return pb.DiffWorkflowVersionsResponse(
            changes=_changes(found.changes),
            text=_text(found.text),
            from_version=found.versions[0],
            to_version=found.versions[1],
        )


def _changes(changes: Sequence[Change]) -> list[pb.Change]:
    encoded = (
        pb.Change(
            kind=_KINDS[each.kind],
            place=each.place,
            before=each.before,
            after=each.after,
            can_break=each.can_break,
        )
        for each in changes
    )
    return next(in_parts(encoded, limit=len(changes) + 1, bytes_max=_CHANGES_BYTES_MAX))


def _text(diff: TextDiff) -> pb.TextDiff:
    return pb.TextDiff(text=diff.text, cut=diff.cut)
