"""Bulk operations on all runs that match a filter."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from qflow.cli.common import (
    AsJson,
    ContextName,
    Home,
    as_plain,
    console,
    print_json,
    print_list,
    with_client,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qflow.client.client import Client

app = typer.Typer(no_args_is_help=True, help="Bulk operations on runs that match a filter.")

Filter = Annotated[
    str, typer.Argument(help="A filter, such as 'status = failed AND labels.env = prod'.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show which runs match.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]

REFUSED: Final = 3


@app.command("cancel")
def cancel(
    filter: Filter,
    dry_run: DryRun = False,
    yes: Yes = False,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> int:
    """Cancel all runs that match a filter."""
    return _all("Cancel", filter, dry_run, yes, context, home, as_json)


@app.command("retry")
def retry(
    filter: Filter,
    dry_run: DryRun = False,
    yes: Yes = False,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> int:
    """Retry all runs that match a filter, as new runs."""
    return _all("Retry", filter, dry_run, yes, context, home, as_json)


@app.command("rerun")
def rerun(
    filter: Filter,
    dry_run: DryRun = False,
    yes: Yes = False,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> int:
    """Rerun what did not complete in all runs that match a filter, as new runs."""
    return _all("Rerun", filter, dry_run, yes, context, home, as_json)


def _all(  # the arguments of each command
    verb: str, filter: str, dry_run: bool, yes: bool, context: str, home: str, as_json: bool
) -> int:
    found = _called(verb, filter, context, home, dry=True)
    if dry_run or not found.items:
        return _told(found, as_json=as_json)
    taken = sum(not item.status.code for item in found.items)
    if not yes:
        more = ", and there are more" if found.truncated else ""
        typer.confirm(f"{verb} {taken} of {len(found.items)} runs{more}?", abort=True, err=True)
    # The runs that were shown, whatever the filter matches by now.
    ids = [item.execution_id for item in found.items]
    done = _called(verb, "", context, home, ids=ids, dry=False)
    done.truncated = found.truncated
    return _told(done, as_json=as_json)


def _called(
    verb: str, filter: str, context: str, home: str, *, ids: Sequence[str] = (), dry: bool
) -> Any:
    from qflow.orchestrator.v1 import rerun_service_pb2 as pb
    from qflow.orchestrator.v1 import rerun_service_pb2_grpc as pb_grpc

    name = f"Batch{verb}Executions"
    said: dict[str, Any] = {"execution_ids": ids, "filter": filter, "validate_only": dry}
    if not dry and verb != "Cancel":
        said["request_id"] = str(uuid.uuid4())
    request = getattr(pb, f"{name}Request")(**said)

    async def calling(client: Client) -> Any:
        stub = client.connection.stub("orchestrator", pb_grpc.RerunServiceStub)
        address = client.context.orchestrator
        return await client.connection.call(getattr(stub, name), request, address=address)

    return with_client(calling, context=context, home=home)


def _told(answer: Any, *, as_json: bool) -> int:
    """Print the result for each; exit code 3 if any was refused."""
    if as_json:
        print_json(as_plain(answer))
    else:

        def row(item: Any) -> Sequence[str]:
            return (item.execution_id, item.new_execution_id, item.status.message)

        print_list(answer.items, ("run", "new run", "refused"), row, as_json=False)
        if answer.truncated:
            console(errors=True).print("the filter finds more: call again for the next")
    return REFUSED if any(item.status.code for item in answer.items) else 0
