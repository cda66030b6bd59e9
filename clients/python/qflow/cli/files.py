"""Files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from qflow.exceptions import AuthoringError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qflow.client.client import Client
    from qflow.client.files import Progress

app = typer.Typer(no_args_is_help=True, help="Files used and made by runs.")


@app.command("put")
def put(
    path: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Upload a file; resumes after a broken connection."""

    async def bringing(client: Client) -> Any:
        with _Bar(path.name) as told:
            return await client.files.upload(path, progress=told)

    file = with_client(bringing, context=context, home=home)
    print_json(as_plain(file)) if as_json else typer.echo(file.id)


@app.command("get")
def get(
    file_id: str,
    path: Annotated[
        Path | None, typer.Argument(help="The target path; default: its own name, here.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Overwrite an existing file.")
    ] = False,
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Download a file; it is complete and verified, or absent.

    By its own name, which somebody else chose, it replaces nothing without --force.
    """
    in_folder = path is not None and os.path.isdir(path)  # noqa: PTH112  # also for too long names

    async def fetching(client: Client) -> tuple[Path, Any]:
        to = path
        if to is None or in_folder:
            name = (await client.files.about(file_id)).filename
            to = _own_name(to or Path(), name, file_id, force=force)
        with _Bar(to.name) as told:
            return to, await client.files.download(file_id, to, progress=told)

    to, file = with_client(fetching, context=context, home=home)
    print_json({"path": str(to), "file": as_plain(file)}) if as_json else typer.echo(to)


def _own_name(folder: Path, filename: str, file_id: str, *, force: bool) -> Path:
    """Return the path of a file in a folder, by the last part of its name."""
    to = folder / (Path(filename).name or file_id)
    if not force and os.path.lexists(to):
        raise AuthoringError(
            f"{to} is there already, and the file's name was chosen by whoever brought it: say "
            f"where to (`qflow files get {file_id} PATH`), or --force to replace it"
        )
    return to


@app.command("ls")
def list_(
    run: Annotated[str, typer.Option(help="Only files of this run.")] = "",
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """List files."""

    async def listing(client: Client) -> list[Any]:
        return [each async for each in client.files.list(execution_id=run)]

    there = with_client(listing, context=context, home=home)

    def row(each: Any) -> Sequence[str]:
        return (each.id, each.filename, f"{each.size_bytes:,}", each.execution_id)

    titles = ("id", "name", "bytes", "run")
    print_list(there, titles, row, as_json=as_json, right=("bytes",))


@app.command("rm")
def remove(
    file_id: str, context: ContextName = "", home: Home = "", as_json: AsJson = False
) -> None:
    """Delete an uploaded file."""
    with_client(lambda c: c.files.delete(file_id), context=context, home=home)
    if as_json:
        print_json({})  # the response of the contract


class _Bar:
    """Show a progress bar on a terminal, nothing in a pipe."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bar: Any = None

    def __enter__(self) -> Progress:
        out = console(errors=True)
        if not out.is_terminal:
            return lambda _done, _all: None
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TransferSpeedColumn,
        )

        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=out,
        )
        self._bar = bar
        bar.start()
        task = bar.add_task(self._name, total=None)
        return lambda done, whole: bar.update(task, completed=done, total=whole)

    def __exit__(self, *_error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
