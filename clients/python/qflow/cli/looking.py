"""Plans of runs, and differences of versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qflow.cli.commands import in_shell
from qflow.cli.common import (
    INT32_MAX,
    AsJson,
    ContextName,
    Home,
    as_plain,
    console,
    print_json,
    stored_workflow,
    with_client,
)
from qflow.cli.inputs import Given, stored_inputs_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qflow.client.client import Client


def plan(
    workflow: Annotated[str, typer.Argument(help="The workflow's name or id.")],
    given: Given = None,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Show what a run would do. Nodes, cache hits, environments, time, warnings."""
    from qflow.orchestrator.v1 import execution_service_pb2, plan_service_pb2
    from qflow.orchestrator.v1 import plan_service_pb2_grpc as pb_grpc

    async def planning(client: Client) -> tuple[Any, list[str]]:
        stored = await stored_workflow(client, workflow)
        request = plan_service_pb2.PlanExecutionRequest(
            start=execution_service_pb2.StartExecutionRequest(
                workflow_id=stored.id, input_json=stored_inputs_json(stored, given or [])
            )
        )
        stub = client.connection.stub("orchestrator", pb_grpc.PlanServiceStub)
        told = await client.connection.call(
            stub.PlanExecution, request, address=client.context.orchestrator
        )
        within = [] if as_json else told.workflows[1:]
        return told, [await _heading(client, each) for each in within]

    told, headings = with_client(planning, context=context, home=home)
    if as_json:
        print_json(as_plain(told))
        return
    _say_plan(told, headings)


def diff(
    what: Annotated[str, typer.Argument(help="A workflow's name or id, or a node's id.")],
    first: Annotated[int, typer.Argument(help="The old version.", min=1, max=INT32_MAX)],
    last: Annotated[
        int, typer.Argument(help="The new version; 0: current.", min=0, max=INT32_MAX)
    ] = 0,
    node: Annotated[bool, typer.Option("--node", help="Compare versions of a node.")] = False,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Show what changed between two versions. Breaking changes are marked."""
    from qflow.registry.v1 import diff_service_pb2 as pb
    from qflow.registry.v1 import diff_service_pb2_grpc as pb_grpc

    async def comparing(client: Client) -> Any:
        stub = client.connection.stub("registry", pb_grpc.DiffServiceStub)
        address = client.context.registry
        if node:
            of_node = pb.DiffNodeVersionsRequest(node_id=what, from_version=first, to_version=last)
            return await client.connection.call(stub.DiffNodeVersions, of_node, address=address)
        stored = await stored_workflow(client, what)
        request = pb.DiffWorkflowVersionsRequest(
            workflow_id=stored.id, from_version=first, to_version=last
        )
        return await client.connection.call(stub.DiffWorkflowVersions, request, address=address)

    told = with_client(comparing, context=context, home=home)
    if as_json:
        print_json(as_plain(told))
        return
    _say_diff(told)


async def _heading(client: Client, planned: Any) -> str:
    """Return the name of a sub-workflow, or its id if it is gone."""
    from qflow.errors import NotFoundError

    try:
        named = (await client.workflow(planned.workflow_id, version=planned.version)).name
    except NotFoundError:
        named = planned.workflow_id
    return f"within, {named} version {planned.version}:"


def _say_plan(told: Any, headings: Sequence[str]) -> None:
    from qflow.cli import show, tables
    from qflow.orchestrator.v1 import plan_service_pb2 as pb

    out = console()
    for workflow, heading in zip(told.workflows, ["", *headings], strict=True):
        if heading:
            out.print(f"\n{heading}", markup=False)
        made = tables.table("node", "kind", "usually", "", right=("usually",))
        for each in workflow.nodes:
            kind = pb.PlannedNodeKind.Name(each.kind).rpartition("_")[2].lower()
            known = each.time.samples > 0
            usual = show.duration(each.time.median.ToMilliseconds()) if known else ""
            made.add_row(each.node, kind, usual, "from the cache" if each.cache_hit else "")
        out.print(made, markup=False)
    for version in told.node_versions:
        state = pb.PlannedEnvironment.Name(version.environment)
        state = state.removeprefix("PLANNED_ENVIRONMENT_").lower().replace("_", " ")
        if state != "not needed":
            out.print(f"environment of {version.name}: {state}", markup=False)
    if told.time.median.ToMilliseconds():
        spans = [show.duration(each.ToMilliseconds()) for each in (told.time.median, told.time.p90)]
        out.print(f"expected: {spans[0]}, 90 of 100 within {spans[1]}", markup=False)
    for warning in told.warnings:
        out.print(f"warning: {warning.message}", markup=False, style="yellow")
        if warning.action:
            out.print(f"  → {in_shell(warning.action)}", markup=False)


def _say_diff(told: Any) -> None:
    from qflow.registry.v1 import diff_service_pb2 as pb

    out = console()
    for each in told.changes:
        kind = pb.ChangeKind.Name(each.kind).rpartition("_")[2].lower()
        breaks = "  (can break others)" if each.can_break else ""
        values = " → ".join(value for value in (each.before, each.after) if value)
        out.print(f"{kind} {each.place}: {values}{breaks}", markup=False)
    text = told.source if told.DESCRIPTOR.name == "DiffNodeVersionsResponse" else told.text
    if not told.changes and not text.text:
        console(errors=True).print("nothing has changed between the two")
    styles = {"+": "green", "-": "red", "@": "cyan"}
    for line in text.text.splitlines():
        out.print(line, markup=False, style=styles.get(line[:1], ""))
