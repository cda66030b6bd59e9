"""Aliases of workflows: names such as `stable` for a version."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qflow.cli.common import (
    INT32_MAX,
    AsJson,
    ContextName,
    Home,
    as_plain,
    moment_text,
    print_json,
    print_list,
    stored_workflow,
    with_client,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.message import Message

    from qflow.client.client import Client

app = typer.Typer(no_args_is_help=True, help="Aliases of workflows: names for versions.")

Workflow = Annotated[str, typer.Argument(help="The workflow's name or id.", metavar="WORKFLOW")]
Alias = Annotated[str, typer.Argument(help="The alias, such as stable.", metavar="ALIAS")]


@app.command("ls")
def list_(
    workflow: Workflow, context: ContextName = "", home: Home = "", as_json: AsJson = False
) -> None:
    """List the aliases of a workflow, newest first."""
    from qflow.registry.v1 import workflow_alias_service_pb2 as pb

    async def listing(client: Client) -> list[Any]:
        stored = await stored_workflow(client, workflow)
        request = pb.ListWorkflowAliasesRequest(workflow_id=stored.id, page_size=200)
        there = client.connection.pages(
            _stub(client).ListWorkflowAliases,
            request,
            "workflow_aliases",
            address=client.context.registry,
        )
        return [each async for each in there]

    _print(with_client(listing, context=context, home=home), as_json=as_json)


@app.command("set")
def set_(
    workflow: Workflow,
    alias: Alias,
    version: Annotated[int, typer.Argument(help="The version.", min=1, max=INT32_MAX)],
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Set an alias to a version; creates it if needed."""
    _change(
        "SetWorkflowAlias",
        workflow,
        {"alias": alias, "version": version},
        context=context,
        home=home,
        as_json=as_json,
    )


@app.command("rollback")
def rollback(
    workflow: Workflow,
    alias: Alias,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Set an alias back to its previous version."""
    _change(
        "RollbackWorkflowAlias",
        workflow,
        {"alias": alias},
        context=context,
        home=home,
        as_json=as_json,
    )


@app.command("rm")
def remove(
    workflow: Workflow,
    alias: Alias,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Delete an alias; the version stays."""
    _change(
        "DeleteWorkflowAlias",
        workflow,
        {"alias": alias},
        context=context,
        home=home,
        as_json=as_json,
    )


def _change(
    method: str, workflow: str, said: dict[str, Any], *, context: str, home: str, as_json: bool
) -> None:
    """Make a call that changes an alias, and print its version."""
    from qflow.registry.v1 import workflow_alias_service_pb2 as pb

    async def changing(client: Client) -> Any:
        stored = await stored_workflow(client, workflow)
        request: Message = getattr(pb, f"{method}Request")(
            workflow_id=stored.id, request_id=str(uuid.uuid4()), **said
        )
        return await client.connection.call(
            getattr(_stub(client), method), request, address=client.context.registry
        )

    answer = with_client(changing, context=context, home=home)
    if as_json:
        print_json(as_plain(answer))
    elif answer.DESCRIPTOR.fields:
        _print([answer.workflow_alias])


def _stub(client: Client) -> Any:
    from qflow.registry.v1.workflow_alias_service_pb2_grpc import WorkflowAliasServiceStub

    return client.connection.stub("registry", WorkflowAliasServiceStub)


def _print(aliases: Sequence[Any], *, as_json: bool = False) -> None:
    def row(each: Any) -> Sequence[str]:
        return (each.alias, str(each.version), moment_text(each.update_time))

    print_list(aliases, ("alias", "version", "since"), row, as_json=as_json, right=("version",))
