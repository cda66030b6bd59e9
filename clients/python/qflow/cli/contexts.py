"""Contexts, and signing in."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Final

import typer

from qflow.cli.common import AsJson, ContextName, Home, as_plain, print_json, with_client
from qflow.exceptions import AuthoringError, ConfigurationError

if TYPE_CHECKING:
    from qflow.client.contexts import Context

app = typer.Typer(no_args_is_help=True, help="Contexts: addresses and tokens of Qflows.")
_SERVICE_PORTS: Final = {"registry": 1, "orchestrator": 2, "runner": 3, "telemetry": 4}
_PORT_MAX: Final = 65_535


@app.command("ls")
def list_(as_json: AsJson = False) -> None:
    """List the contexts; the current one is marked."""
    from qflow.client.contexts import Contexts

    contexts = Contexts.load()
    if as_json:
        print_json(
            [
                _told(name, each, current=name == contexts.current)
                for name, each in sorted(contexts.known.items())
            ]
        )
        return
    for name, each in sorted(contexts.known.items()):
        typer.echo(f"{'*' if name == contexts.current else ' '} {name:<20} {each.registry}")


@app.command("use")
def use(name: str, as_json: AsJson = False) -> None:
    """Make a context the current one."""
    from qflow.client.contexts import Contexts

    contexts = Contexts.load()
    contexts.use(name)
    if as_json:
        print_json(_told(name, contexts.known[name], current=True))


@app.command("rm")
def remove(name: str, as_json: AsJson = False) -> None:
    """Remove a context and its token."""
    from qflow.client.contexts import Contexts

    contexts = Contexts.load()
    gone = contexts.known.get(name)
    contexts.remove(name)
    if as_json and gone is not None:
        print_json(_told(name, gone, current=False))


def _told(name: str, context: Context, *, current: bool) -> dict[str, object]:
    return {"name": name, "registry": context.registry, "current": current}


def login(
    address: Annotated[
        str, typer.Argument(help="HOST:PORT of the registry; the others use the next ports.")
    ],
    email: Annotated[
        str, typer.Option(help="Sign in with this email address and a password.")
    ] = "",
    token: Annotated[
        str, typer.Option(help="Use this token instead; default without --email: QFLOW_TOKEN.")
    ] = "",
    name: Annotated[str, typer.Option(help="The name of the context.")] = "default",
    orchestrator: Annotated[str, typer.Option(help="HOST:PORT, if it is elsewhere.")] = "",
    runner: Annotated[str, typer.Option(help="HOST:PORT, if it is elsewhere.")] = "",
    telemetry: Annotated[str, typer.Option(help="HOST:PORT, if it is elsewhere.")] = "",
    ca_file: Annotated[str, typer.Option(help="Use TLS with this authority (PEM).")] = "",
    tls: Annotated[
        bool, typer.Option("--tls", help="Use TLS with this machine's authorities.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Sign in to a Qflow. Stores its addresses and the token as a context (mode 0600)."""
    import os

    from qflow.client.contexts import Context, Contexts, Tls

    if email and token:
        raise AuthoringError("sign in with --email or with --token, not with both")
    token = token or ("" if email else os.environ.get("QFLOW_TOKEN", ""))
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) <= _PORT_MAX:
        raise ConfigurationError(f"an address is HOST:PORT, not {address!r}")
    told = {"orchestrator": orchestrator, "runner": runner, "telemetry": telemetry}
    first = int(port) - _SERVICE_PORTS["registry"]
    addresses = {
        service: told.get(service) or f"{host}:{first + offset}"
        for service, offset in _SERVICE_PORTS.items()
    }
    context = Context(
        registry=address,
        orchestrator=addresses["orchestrator"],
        runner=addresses["runner"],
        telemetry=addresses["telemetry"],
        token=token,
        tls=Tls(ca_file=ca_file) if ca_file or tls else None,
    )
    _refuse_plain_text(context)
    if not token:
        asked = email or typer.prompt("Email")
        password = typer.prompt("Password", hide_input=True)
        context = replace(context, token=_sign_in(context, asked, password))
    caller = _caller(context)
    Contexts.load().put(name, context)
    if as_json:
        print_json({"name": name, "registry": address, "email": caller})
        return
    typer.echo(f"{name}: signed in as {caller} at {address}")


def _refuse_plain_text(context: Context) -> None:
    """Refuse to send passwords and tokens unencrypted to another machine."""
    if context.tls is not None:
        return
    told = (context.registry, context.orchestrator, context.runner, context.telemetry)
    if far := [each for each in told if not _is_here(each)]:
        raise AuthoringError(
            f"{far[0]} is another machine, and what is sent to it in plain text can be read on its "
            "way. Nothing was sent. Encrypt: --ca-file FILE with the authority of its certificates "
            "(authority.crt of the deployment), or --tls where this machine knows it already; or "
            "reach it through a tunnel, as 127.0.0.1"
        )


def _is_here(address: str) -> bool:
    import ipaddress

    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def whoami(context: ContextName = "", home: Home = "", as_json: AsJson = False) -> None:
    """Show who you are signed in as."""
    caller = with_client(lambda client: client.caller(), context=context, home=home)
    if as_json:
        print_json(as_plain(caller))
        return
    typer.echo(f"{caller.email} ({'owner' if caller.is_owner else _role(caller.role)})")


def _role(role: int) -> str:
    from qflow.auth.v1 import auth_pb2

    return auth_pb2.Role.Name(role).removeprefix("ROLE_").lower()  # type: ignore[arg-type]


def _sign_in(context: object, email: str, password: str) -> str:
    import asyncio

    from qflow.client.client import Client
    from qflow.client.contexts import Context
    from qflow.registry.v1 import session_service_pb2, session_service_pb2_grpc

    async def signing_in() -> str:
        assert isinstance(context, Context)
        async with Client(context) as client:
            stub = client.connection.stub("registry", session_service_pb2_grpc.SessionServiceStub)
            request = session_service_pb2.SignInRequest(email=email, password=password)
            answer = await client.connection.call(stub.SignIn, request, address=context.registry)
            token: str = answer.token
            return token

    return asyncio.run(signing_in())


def _caller(context: object) -> str:
    import asyncio

    from qflow.client.client import Client
    from qflow.client.contexts import Context

    async def asking() -> str:
        assert isinstance(context, Context)
        async with Client(context) as client:
            return (await client.caller()).email

    return asyncio.run(asking())
