"""Concurrency limits and rate limits."""

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
    call,
    do,
    pages,
    print_json,
    print_list,
    stored_node,
    stored_workflow,
    with_client,
)
from qflow.cli.times import span, span_text
from qflow.exceptions import AuthoringError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.duration_pb2 import Duration

    from qflow.client.client import Client

app = typer.Typer(
    no_args_is_help=True,
    help="Concurrency limits and rate limits.",
)

Name = Annotated[str, typer.Argument(help="The limit's name.")]
Running = Annotated[
    int | None, typer.Option(help="How many at once; 0: no limit.", min=0, max=INT32_MAX)
]
Starts = Annotated[
    int | None, typer.Option(help="How many starts per --period.", min=0, max=INT32_MAX)
]
Period = Annotated[str, typer.Option(help="The period of --max-starts: 1s, 1m, 1d.")]
Key = Annotated[
    str | None, typer.Option(help="CEL over `input`; each value is counted separately.")
]


@app.command("create")
def create(
    name: Name,
    workflow: Annotated[str, typer.Option(help="Limit runs of this workflow.")] = "",
    node: Annotated[str, typer.Option(help="Limit attempts of this node.")] = "",
    max_running: Running = None,
    max_starts: Starts = None,
    period: Period = "",
    key: Key = None,
    owner: Annotated[str, typer.Option(help="Limit what this user starts (id).")] = "",
    per_owner: Annotated[
        bool, typer.Option("--per-owner", help="Count each user separately.")
    ] = False,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Create a limit. For a workflow, a node, or all attempts of the tenant."""
    from qflow.orchestrator.v1 import limit_service_pb2 as pb

    if workflow and node:
        raise AuthoringError("a limit is of one --workflow, of one --node, or of neither")

    async def creating(client: Client) -> Any:
        target = "WORKFLOW" if workflow else "NODE" if node else "TENANT"
        request = pb.CreateLimitRequest(
            name=name,
            target=pb.LimitTarget.Value(f"LIMIT_TARGET_{target}"),
            workflow_id=(await stored_workflow(client, workflow)).id if workflow else "",
            node_id=(await stored_node(client, node)).id if node else "",
            max_running=max_running or 0,
            max_starts=max_starts or 0,
            period=_period(period),
            key_expression=key or "",
            owner_id=owner,
            per_owner=per_owner,
            request_id=str(uuid.uuid4()),
        )
        made = (await call(client, "Limit", "CreateLimit", request)).limit
        return await _named(client, [made])

    [(made, of)] = with_client(creating, context=context, home=home)
    print_json(as_plain(made)) if as_json else _print([(made, of)])


@app.command("set")
def set_(
    name: Name,
    max_running: Running = None,
    max_starts: Starts = None,
    period: Period = "",
    key: Key = None,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Change the amounts of a limit; those not given stay. Its subject does not change."""
    from qflow.orchestrator.v1 import limit_service_pb2 as pb

    async def setting(client: Client) -> Any:
        found = await call(client, "Limit", "GetLimit", pb.GetLimitRequest(name=name))
        before = found.limit
        starts = before.max_starts if max_starts is None else max_starts
        kept = before.period if starts and before.max_starts else None
        request = pb.UpdateLimitRequest(
            name=name,
            max_running=before.max_running if max_running is None else max_running,
            max_starts=starts,
            period=_period(period) or kept,
            key_expression=before.key_expression if key is None else key,
            etag=before.etag,
            request_id=str(uuid.uuid4()),
        )
        made = (await call(client, "Limit", "UpdateLimit", request)).limit
        return await _named(client, [made])

    [(made, of)] = with_client(setting, context=context, home=home)
    print_json(as_plain(made)) if as_json else _print([(made, of)])


@app.command("ls")
def list_(context: ContextName = "", home: Home = "", as_json: AsJson = False) -> None:
    """List the limits. `qflow explain` shows what waits for one."""
    from qflow.orchestrator.v1 import limit_service_pb2 as pb

    request = pb.ListLimitsRequest(page_size=200)

    async def listing(client: Client) -> list[tuple[Any, str]]:
        return await _named(client, await pages(client, "Limit", "ListLimits", request, "limits"))

    _print(with_client(listing, context=context, home=home), as_json=as_json)


@app.command("rm")
def remove(name: Name, context: ContextName = "", home: Home = "", as_json: AsJson = False) -> None:
    """Delete a limit; what waits for it continues."""
    from qflow.orchestrator.v1 import limit_service_pb2 as pb

    request = pb.DeleteLimitRequest(name=name)
    do("Limit", "DeleteLimit", request, context=context, home=home, as_json=as_json)


def _period(text: str) -> Duration | None:
    from google.protobuf.duration_pb2 import Duration

    if not text:
        return None
    told = Duration()
    told.FromTimedelta(span(text))
    return told


async def _named(client: Client, limits: list[Any]) -> list[tuple[Any, str]]:
    """Return each limit with the name of its subject, or the id if that is deleted."""
    return [(each, await _of(client, each)) for each in limits]


async def _of(client: Client, limit: Any) -> str:
    from qflow.errors import NotFoundError

    try:
        if limit.workflow_id:
            return f"workflow {(await client.workflow(limit.workflow_id)).name}"
        return f"node {(await client.node(limit.node_id)).name}" if limit.node_id else "all"
    except NotFoundError:
        kind = "workflow" if limit.workflow_id else "node"
        return f"{kind} {limit.workflow_id or limit.node_id}, deleted"


def _print(limits: list[tuple[Any, str]], *, as_json: bool = False) -> None:
    if as_json:
        print_json([as_plain(limit) for limit, _ in limits])
        return
    titles = ("name", "of", "at once", "begin", "counted")
    print_list(limits, titles, lambda each: _row(*each), as_json=False)


def _row(limit: Any, of: str) -> Sequence[str]:
    rate = f"{limit.max_starts} in {span_text(limit.period.ToTimedelta())}"
    at_once, begin = limit.max_running or "any", rate if limit.max_starts else "any"
    return (limit.name, of, str(at_once), begin, _counted(limit))


def _counted(limit: Any) -> str:
    whose = "for each user" if limit.per_owner else f"of {limit.owner_id}" if limit.owner_id else ""
    key = f"for each {limit.key_expression}" if limit.key_expression else ""
    return ", ".join(filter(None, (whose, key))) or "together"
