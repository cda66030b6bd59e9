"""Quotas of tenants and their usage."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from qflow.cli.common import (
    AsJson,
    ContextName,
    Home,
    amounts_of,
    as_plain,
    call,
    console,
    print_json,
    with_client,
)
from qflow.exceptions import AuthoringError

if TYPE_CHECKING:
    from rich.table import Table

    from qflow.client.client import Client

app = typer.Typer(help="Quotas of tenants and their usage. Without a command: yours.")
# Numbers of a quota by field name: what each counts, and the field of its usage.
_NAMES: Final = {
    "executions_running": "executions_running",
    "executions_per_day": "executions",
    "per_day.nodes": "nodes",
    "per_day.cpu_seconds": "cpu_seconds",
    "per_day.gb_seconds": "gb_seconds",
    "per_day.moved_bytes": "moved_bytes",
    "per_execution.nodes": "",
    "per_execution.cpu_seconds": "",
    "per_execution.gb_seconds": "",
    "per_execution.moved_bytes": "",
    "stored_bytes": "stored_bytes",
    "stored_files": "stored_files",
    "environments": "environments",
    "environment_bytes": "environment_bytes",
}
_UNSAID: Final = dict.fromkeys(("stored_bytes", "stored_files"), "default")
_BAR_CHARS: Final = 20
_NEARLY: Final = 0.8


@app.callback(invoke_without_command=True)
def own(
    called: typer.Context, context: ContextName = "", home: Home = "", as_json: AsJson = False
) -> None:
    """Show the quota of your tenant."""
    if called.invoked_subcommand is None:
        show("", context=context, home=home, as_json=as_json)


@app.command("show")
def show(
    tenant: Annotated[
        str, typer.Argument(help="A tenant's id, for administrators; without one, yours.")
    ] = "",
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Show a quota and its usage."""
    _print(with_client(lambda c: _read(c, tenant), context=context, home=home), as_json=as_json)


@app.command("set")
def set_(
    tenant: Annotated[str, typer.Argument(help="The tenant's id.")],
    given: Annotated[
        list[str],
        typer.Argument(
            help="NAME=AMOUNT, named as in `show`; 0: no limit.", metavar="NAME=AMOUNT…"
        ),
    ],
    context: ContextName = "",
    home: Home = "",
    as_json: AsJson = False,
) -> None:
    """Change a tenant's quota; numbers not given stay. For administrators.

    Amounts may have a unit: 36000, 10k, 1.5GiB.
    """
    from qflow.orchestrator.v1 import quota_service_pb2 as pb

    numbers = amounts_of(given)
    if unknown := [name for name in numbers if name not in _NAMES]:
        raise AuthoringError(f"a quota has no {unknown[0]!r} (there: {', '.join(_NAMES)})")

    async def setting(client: Client) -> Any:
        before = await _read(client, tenant)
        for name, amount in numbers.items():
            group, _, field = name.rpartition(".")
            setattr(getattr(before.quota, group) if group else before.quota, field, amount)
        request = pb.SetTenantQuotaRequest(
            tenant_id=tenant, quota=before.quota, etag=before.etag, request_id=str(uuid.uuid4())
        )
        return (await call(client, "Quota", "SetTenantQuota", request)).quota

    _print(with_client(setting, context=context, home=home), as_json=as_json)


async def _read(client: Client, tenant: str) -> Any:
    from qflow.orchestrator.v1 import quota_service_pb2 as pb

    if tenant:
        request = pb.GetTenantQuotaRequest(tenant_id=tenant)
        return (await call(client, "Quota", "GetTenantQuota", request)).quota
    return (await call(client, "Quota", "GetQuota", pb.GetQuotaRequest())).quota


def _print(told: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(as_plain(told))
        return
    console().print(_table(told))


def _table(told: Any) -> Table:
    """Return a row per number: name, usage, limit, percentage."""
    from rich.text import Text

    from qflow.cli.tables import table

    made = table("quota", "used", "of", "", right=("used", "of"))
    for name, use in _NAMES.items():
        group, _, field = name.rpartition(".")
        limit = getattr(getattr(told.quota, group) if group else told.quota, field)
        used = getattr(told.usage, use) if use else None
        made.add_row(
            name,
            "" if used is None else _plain(name, used),
            _plain(name, limit) if limit else _UNSAID.get(name, "any"),
            Text("") if used is None or not limit else _bar(Text, used / limit),
        )
    return made


def _plain(name: str, amount: float) -> str:
    if not name.endswith("bytes"):
        return f"{round(amount, 1):,.12g}"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1 << 10:
            return f"{amount:.3g} {unit}"
        amount /= 1 << 10
    return f"{amount:,.4g} TiB"


def _bar(text: Any, share: float) -> Any:
    full = min(_BAR_CHARS, round(share * _BAR_CHARS))
    style = "red" if share >= 1 else "yellow" if share >= _NEARLY else "green"
    bar = text("━" * full, style=style)
    return bar.append("─" * (_BAR_CHARS - full), style="dim").append(f" {share:.0%}", style=style)
