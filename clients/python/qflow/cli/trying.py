"""Running a single node."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Annotated

import typer

from qflow.cli.common import (
    INT32_MAX,
    AsJson,
    ContextName,
    Home,
    call,
    print_json,
    stored_node,
    with_client,
)
from qflow.cli.inputs import Given, InputText, inputs_of

if TYPE_CHECKING:
    from typing import Any

    from qflow.client.client import Client
    from qflow.client.runs import Run


def run_node(
    node: Annotated[str, typer.Argument(help="The node's name or id.", metavar="NODE")],
    given: Given = None,
    text: InputText = "",
    version: Annotated[
        int, typer.Option(help="The version; 0: current.", min=0, max=INT32_MAX)
    ] = 0,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Do not wait for the end.")
    ] = False,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> int:
    """Run one version of a node, and print its result.

    Inputs that are not given take the node's defaults; there are no retries and no variables.
    """
    inputs_of(given or [], text)  # report syntax errors before any call

    async def running(client: Client) -> int:
        from qflow.cli import watching

        started, interrupted = await watching.begun(
            _started(client, node, given or [], text, version=version)
        )
        if interrupted:
            return await watching.asked(started)
        if detach:
            print_json({"id": started.id}) if as_json else typer.echo(started.id)
            return 0
        return await watching.until_over(client, started, None, as_json=as_json)

    return with_client(running, context=context, home=home)


async def _started(
    client: Client, named: str, given: list[str], text: str, *, version: int
) -> Run[dict[str, Any]]:
    from google.protobuf.duration_pb2 import Duration

    from qflow import values
    from qflow.orchestrator.v1 import run_service_pb2 as pb
    from qflow.types import ANY, from_text

    current = await stored_node(client, named)
    node = await client.node(current.id, version=version) if version else current
    types = {
        each.name: from_text(each.type_json) if each.type_json else ANY for each in node.inputs
    }
    request = pb.RunNodeRequest(
        node_id=node.id,
        node_version=version,
        input_json=values.dump(inputs_of(given, text, types)),
        request_id=str(uuid.uuid4()),
        wait=Duration(),  # returns its id at once; it is then watched as any run
    )
    answer = await call(client, "Run", "RunNode", request)
    return client.attach(answer.execution.id)
