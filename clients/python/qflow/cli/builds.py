"""Building environments before a run."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final

from qflow.cli.common import console

if TYPE_CHECKING:
    from qflow.client.client import Client

_LOOK_S: Final = 1


async def build(client: Client, *, name: str, node_id: str = "", workflow_id: str = "") -> bool:
    """Build the environment of a node, or of each node of a workflow; report failures.

    On a terminal a bar shows how many there are. Whoever leaves loses nothing: builds go on.
    """
    from qflow.runner.v1 import environment_service_pb2 as pb
    from qflow.runner.v1 import environment_service_pb2_grpc as pb_grpc

    stub = client.connection.stub("runner", pb_grpc.EnvironmentServiceStub)
    request = pb.PrepareEnvironmentRequest(node_id=node_id, workflow_id=workflow_id)
    request.wait.FromSeconds(_LOOK_S)
    out = console(errors=True)
    with _bar(out) if out.is_terminal else nullcontext() as bar:
        task = bar.add_task(name, total=None) if bar is not None else None
        while True:
            answer = await client.connection.call(
                stub.PrepareEnvironment, request, address=client.context.runner
            )
            if bar is not None and task is not None:
                under_way = sum(_is_built_now(each) for each in answer.nodes)
                whole = len(answer.nodes)
                bar.update(task, completed=whole - under_way, total=whole)
            if answer.complete:
                break
    problems = [each.problem or each.environment.error for each in answer.nodes]
    for problem in dict.fromkeys(filter(None, problems)):
        out.print(f"{name}: its environment could not be built: {problem}", markup=False)
    return not any(problems)


def _is_built_now(node: Any) -> bool:
    from qflow.runner.v1 import environment_service_pb2 as pb

    return bool(node.environment.state == pb.ENVIRONMENT_STATE_BUILDING)


def _bar(out: Any) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("building {task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=out,
        transient=True,
    )
