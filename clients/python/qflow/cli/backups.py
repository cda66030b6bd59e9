"""Backups, for administrators.

Going back to one is a command of the machine itself, where the suite is stopped.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from qflow.cli.common import (
    AsJson,
    ContextName,
    Home,
    as_plain,
    moment_text,
    print_json,
    print_list,
    with_client,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qflow.client.client import Client

app = typer.Typer(no_args_is_help=True, help="Backups, for administrators.")
BackupId = Annotated[str, typer.Argument(help="The backup's id.", metavar="BACKUP")]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Do not wait for the end.")]
_FAILED: Final = 1
_LOOK_S: Final = 1.0


@app.command("take")
def take(
    dump: Annotated[
        bool, typer.Option("--dump", help="A dump of the rows instead of a base backup.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Verify it, too, by restoring it separately.")
    ] = False,
    detach: Detach = False,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> int:
    """Take a backup now."""
    from qflow.telemetry.v1 import backup_service_pb2 as pb

    request = pb.StartBackupRequest(
        kind=pb.BACKUP_KIND_DUMP if dump else pb.BACKUP_KIND_BASE,
        verify=verify,
        request_id=str(uuid.uuid4()),
    )
    return _done(lambda stub: stub.StartBackup, request, detach, context, home, as_json)


@app.command("verify")
def verify(
    backup: BackupId,
    detach: Detach = False,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> int:
    """Verify a backup: restore it separately and check every row and file."""
    from qflow.telemetry.v1 import backup_service_pb2 as pb

    request = pb.VerifyBackupRequest(backup_id=backup, request_id=str(uuid.uuid4()))
    return _done(lambda stub: stub.VerifyBackup, request, detach, context, home, as_json)


@app.command("ls")
def list_(context: ContextName = "", home: Home = "", as_json: AsJson = False) -> None:
    """List the backups and the results of verifying them."""
    from qflow.telemetry.v1 import backup_service_pb2 as pb

    async def listing(client: Client) -> list[Any]:
        pages = client.connection.pages(
            _stub(client).ListBackups,
            pb.ListBackupsRequest(page_size=200),
            "backups",
            address=client.context.telemetry,
        )
        return [each async for each in pages]

    there = with_client(listing, context=context, home=home)

    def row(each: Any) -> Sequence[str]:
        return (
            each.id,
            _word(pb.BackupKind.Name(each.kind)),
            _word(pb.BackupState.Name(each.state)),
            f"{each.size_bytes + each.file_size_bytes:,}",
            moment_text(each.recovery_point_time),
        )

    titles = ("backup", "kind", "state", "bytes", "goes back to")
    print_list(there, titles, row, as_json=as_json, right=("bytes",))


@app.command("status")
def status(context: ContextName = "", home: Home = "", as_json: AsJson = False) -> None:
    """Show whether backups are configured, and how much would be lost now."""
    from qflow.telemetry.v1 import backup_service_pb2 as pb

    told = with_client(
        lambda c: _call(c, lambda stub: stub.GetBackupStatus, pb.GetBackupStatusRequest()),
        context=context,
        home=home,
    )
    if as_json:
        print_json(as_plain(told))
        return
    if not told.enabled:
        typer.echo("No backups are kept: set QFLOW_BACKUP_FOLDER where telemetry runs.")
        return
    typer.echo(f"Every {told.interval.ToTimedelta()}, {told.keep_count} of each kind are kept.")
    for what, moment in (
        ("the newest that is proven", told.last_verify_time),
        ("archived up to", told.archive_time),
    ):
        stands = f"{moment.ToDatetime():%Y-%m-%dT%H:%M:%SZ}" if moment.seconds else "none yet"
        typer.echo(f"  {what}: {stands}")
    if told.last_problem:
        typer.echo(f"  problem: {told.last_problem}")


@app.command("rm")
def remove(
    backup: BackupId, context: ContextName = "", home: Home = "", as_json: AsJson = False
) -> None:
    """Delete a backup."""
    from qflow.telemetry.v1 import backup_service_pb2 as pb

    request = pb.DeleteBackupRequest(backup_id=backup, request_id=str(uuid.uuid4()))
    answer = with_client(
        lambda c: _call(c, lambda stub: stub.DeleteBackup, request), context=context, home=home
    )
    if as_json:
        print_json(as_plain(answer))


def _done(
    method: Callable[[Any], Callable[..., Awaitable[Any]]],
    request: Any,
    detach: bool,
    context: str,
    home: str,
    as_json: bool,
) -> int:
    """Start an operation on a backup and, unless detached, wait for it."""
    import asyncio

    from qflow.telemetry.v1 import backup_service_pb2 as pb

    under_way = {pb.BACKUP_STATE_TAKING, pb.BACKUP_STATE_VERIFYING}

    async def doing(client: Client) -> Any:
        backup = (await _call(client, method, request)).backup
        while not detach and backup.state in under_way:
            await asyncio.sleep(_LOOK_S)
            asked = pb.GetBackupRequest(backup_id=backup.id)
            backup = (await _call(client, lambda stub: stub.GetBackup, asked)).backup
        return backup

    backup = with_client(doing, context=context, home=home)
    if as_json:
        print_json(as_plain(backup))
    else:
        typer.echo(backup.id)
        for problem in backup.problems:
            typer.echo(f"  {problem}", err=True)
    return _FAILED if backup.state == pb.BACKUP_STATE_FAILED else 0


def _word(name: str) -> str:
    return name.rpartition("_")[2].lower()


def _stub(client: Client) -> Any:
    from qflow.telemetry.v1 import backup_service_pb2_grpc as pb_grpc

    return client.connection.stub("telemetry", pb_grpc.BackupServiceStub)


async def _call(
    client: Client, method: Callable[[Any], Callable[..., Awaitable[Any]]], request: Any
) -> Any:
    return await client.connection.call(
        method(_stub(client)), request, address=client.context.telemetry
    )
