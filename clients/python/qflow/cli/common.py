"""Shared by commands: the client, output, and finding functions in files."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from qflow.exceptions import AuthoringError

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.console import Console
    from rich.text import Text

    from qflow.client.client import Client

T = TypeVar("T")

INT32_MAX: Final = 2**31 - 1  # of int32 fields

_PIPE_COLUMNS: Final = 10_000
_UNITS: Final = {"": 1} | {
    unit: base**power
    for power, letter in enumerate("kmgt", 1)
    for unit, base in ((letter, 1000), (f"{letter}i", 1024))
}
_AMOUNT: Final = re.compile(r"([0-9]{1,18}(?:\.[0-9]+)?)\s*([kmgt]i?)?b?", re.IGNORECASE)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ContextName = Annotated[
    str, typer.Option("--context", "-c", help="The context to use; see `qflow context ls`.")
]
RunId = Annotated[str, typer.Argument(help="The run's id.", metavar="RUN")]
ScheduleId = Annotated[str, typer.Argument(help="The schedule's id.", metavar="SCHEDULE")]
Home = Annotated[str, typer.Option("--home", help="Use the suite with this home folder, as owner.")]


def with_client(
    does: Callable[[Client], Coroutine[Any, Any, T]], *, context: str = "", home: str = ""
) -> T:
    """Open a client, use it and close it."""
    import asyncio

    from qflow.client.client import connect

    async def opened() -> T:
        async with connect(name=context, home=home) as client:
            return await does(client)

    return asyncio.run(opened())


async def call(client: Client, service: str, method: str, request: Message) -> Any:
    """Call a service of the orchestrator: `call(client, "Quota", "GetQuota", …)`.

    What it is made with is imported only now: most commands make one.
    """
    address = client.context.orchestrator
    return await client.connection.call(_method(client, service, method), request, address=address)


async def pages(
    client: Client, service: str, method: str, request: Message, field: str
) -> list[Any]:
    """Return all items of a list, from all pages."""
    address = client.context.orchestrator
    there = client.connection.pages(
        _method(client, service, method), request, field, address=address
    )
    return [each async for each in there]


def do(
    service: str, method: str, request: Message, *, context: str, home: str, as_json: bool
) -> Any:
    """Make one call; with JSON output, print the response."""
    answer = with_client(
        lambda client: call(client, service, method, request), context=context, home=home
    )
    if as_json:
        print_json(as_plain(answer))
    return answer


def _method(client: Client, service: str, method: str) -> Any:
    snake = re.sub(r"(?<!^)(?=[A-Z])", "_", service).lower()
    module = importlib.import_module(f"qflow.orchestrator.v1.{snake}_service_pb2_grpc")
    stub = client.connection.stub("orchestrator", getattr(module, f"{service}ServiceStub"))
    return getattr(stub, method)


def console(*, errors: bool = False) -> Console:
    """Return the console: with colour on a terminal, plain in a pipe."""
    from rich.console import Console

    made = Console(stderr=errors, highlight=False, soft_wrap=True)
    if not made.is_terminal:
        made.width = _PIPE_COLUMNS  # programs read lines: never wrap them
    return made


def print_json(told: Any) -> None:
    """Print a JSON document."""
    typer.echo(json.dumps(told, ensure_ascii=False, indent=2))


def print_list(
    there: Sequence[Any],
    titles: Sequence[str],
    row: Callable[[Any], Sequence[str | Text]],
    *,
    as_json: bool,
    right: Sequence[str] = (),
) -> None:
    """Print messages as a table, or as JSON."""
    if as_json:
        print_json([as_plain(each) for each in there])
        return
    from qflow.cli.tables import listed

    out = console()
    out.print(listed(out, titles, [row(each) for each in there], right=right))


def as_plain(message: Message) -> dict[str, Any]:
    """Return a message as JSON, with field names of the contract; unset fields are left out."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, preserving_proto_field_name=True)


def found(place: str, kind: str) -> list[Any]:
    """Return the nodes or workflows of `FILE`, or the one named by `FILE:NAME`.

    The file is loaded as Python loads it: its own folder is where it imports from.
    """
    from qflow.authoring.node import Node
    from qflow.authoring.workflow import Workflow

    wanted: type[Any] = Node if kind == "node" else Workflow
    file, _, name = place.partition(":")
    path = Path(file).resolve()
    if not path.is_file():
        raise AuthoringError(f"there is no file {file}")
    module = _load(path)
    if name:
        one = getattr(module, name, None)
        if kind == "node" and callable(one) and not isinstance(one, Node | Workflow):
            one = Node(one)  # a plain function is a node
        if not isinstance(one, wanted):
            raise AuthoringError(f"{file} has no {kind} {name}")
        return [one]
    there = [each for each in vars(module).values() if isinstance(each, wanted)]
    if not there:
        raise AuthoringError(f"{file} has no {kind}: mark one with @qflow.{kind}")
    return list({id(each): each for each in there}.values())


def one_found(place: str, kind: str) -> Any:
    """Return the only node or workflow of a file, or the named one."""
    there = found(place, kind)
    if len(there) > 1:
        names = ", ".join(each.__name__ for each in there)
        raise AuthoringError(f"{place} has several: say which one, as {place}:NAME ({names})")
    return there[0]


def _load(path: Path) -> Any:
    name = f"qflow_file_{path.stem}"  # so that it does not hide a module
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise AuthoringError(f"{path.name} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except AuthoringError:
        raise
    except Exception as error:
        raise AuthoringError(
            f"{path.name} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    return module


def amounts_of(given: list[str]) -> dict[str, int]:
    """Parse amounts of resources: `NAME=AMOUNT`, with or without a unit."""
    amounts: dict[str, int] = {}
    for each in given:
        name, equals, amount = each.partition("=")
        found = _AMOUNT.fullmatch(amount.strip())
        if not equals or found is None:
            raise AuthoringError(
                f"an amount is NAME=NUMBER, such as cpu_seconds=600, stored_files=10k or "
                f"stored_bytes=1.5GiB, not {each!r}"
            )
        amounts[name] = round(float(found[1]) * _UNITS[(found[2] or "").lower()])
    return amounts


def moment_text(given: Any) -> str:
    """Format a timestamp in UTC; empty if unset."""
    if not given.ToMilliseconds():
        return ""
    moment: datetime = given.ToDatetime(tzinfo=UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


async def stored_workflow(client: Client, named: str) -> Any:
    """Find a stored workflow by id or by name."""
    return await client.workflow(await _stored_id("workflow", named, client.workflows))


async def stored_node(client: Client, named: str) -> Any:
    """Find a stored node by id or by name."""
    return await client.node(await _stored_id("node", named, client.nodes))


async def _stored_id(kind: str, named: str, find: Callable[[str], AsyncIterator[Any]]) -> str:
    import uuid

    try:
        return str(uuid.UUID(named))
    except ValueError:
        pass
    quoted = named.replace("\\", "\\\\").replace('"', '\\"')
    there = [each async for each in find(f'name = "{quoted}"')]
    if not there:
        shown = f"`qflow {kind} ls` shows all"
        if named.partition(":")[0].endswith(".py"):
            shown = f"of a file, `qflow {kind} push {named}` stores what this takes by its name"
        raise AuthoringError(f"there is no {kind} {named!r}: {shown}")
    if len(there) > 1:
        ids = ", ".join(each.id for each in there)
        raise AuthoringError(f"several {kind}s are named {named!r}: give one's id ({ids})")
    return str(there[0].id)
