"""Signals and approvals that a run waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qflow.cli.common import (
    AsJson,
    ContextName,
    Home,
    RunId,
    call,
    moment_text,
    print_list,
    with_client,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


def waits(
    run_id: RunId, context: ContextName = "", home: Home = "", as_json: AsJson = False
) -> None:
    """List the signals and approvals that a run is waiting for."""
    from qflow.orchestrator.v1 import control_service_pb2 as pb

    request = pb.ListWaitsRequest(execution_id=run_id)
    answer = with_client(
        lambda client: call(client, "Control", "ListWaits", request), context=context, home=home
    )

    def row(each: Any) -> Sequence[str]:
        kind = pb.WaitKind.Name(each.kind).rpartition("_")[2].lower()
        takes = each.type_expression or "anything"
        return (each.node_id, kind, each.name, takes, moment_text(each.due_time), each.subject_json)

    titles = ("node", "kind", "name", "takes", "until", "subject")
    print_list(answer.waits, titles, row, as_json=as_json)
