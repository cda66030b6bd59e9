"""The commands of the suite on one machine."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from services.standalone import hints
from services.standalone.addresses import SERVICES, Ports
from services.standalone.backup import arguments
from services.standalone.bootstrap import OWNER_TOKEN
from services.standalone.home import Home
from services.standalone.isolation import nothing_runs, told_isolation
from services.standalone.process import StandaloneError
from services.standalone.supervisor import Supervisor
from services.standalone.tls_files import ENDPOINTS_KEY

_FAILED: Final = 1
_NOT_RUNNING: Final = 3


def main(given: list[str] | None = None) -> int:
    """Run a command; returns the exit code. Prints an error as one message, without a traceback."""
    asked = _parser().parse_args(given)
    home = Home.from_env(os.environ)
    try:
        return _do(asked, home)
    except StandaloneError as error:
        _say(f"qflow: {error}")
        return _FAILED
    except KeyboardInterrupt:
        return 130


def _do(asked: argparse.Namespace, home: Home) -> int:  # noqa: PLR0911 - one for each command
    match asked.command:
        case "status":
            return _status(home)
        case "token":
            return _token(home)
        case "create-user" | "doctor":
            from services.standalone import people  # imports the registry: only here

            return (
                people.examine(home, asked.arguments)
                if asked.command == "doctor"
                else people.create_user(home, email=asked.email, role=asked.role)
            )
        case "certificates":
            return _certificates(asked, home)
        case "provision":
            from services.standalone import provision  # imports the registry: only here

            _say(
                provision.provision(
                    home, asked.folder, os.environ, hosts=asked.host, days=asked.days
                )
            )
            return 0
        case command if command in arguments.NAMES:
            from services.standalone.backup import commands  # a large import: only here

            return commands.do(asked, home, say=_say)
        case "demo":
            from services.standalone.demo import demo  # imports clients: only here

            return demo(home, os.environ, say=_say)
        case _:
            return up(home, os.environ, ports=asked.ports, say=_say)


def up(
    home: Home,
    env: Mapping[str, str],
    *,
    ports: Ports,
    say: Callable[[str], None],
    then: Callable[[Supervisor], Awaitable[int]] | None = None,
) -> int:
    """Start the suite; run until a signal, or run `then` and stop."""
    began = time.monotonic()

    async def started(suite: Supervisor) -> int:
        say(_welcome(suite, time.monotonic() - began))
        if refused := nothing_runs(suite.isolation, env):
            say(refused)
        if then is not None:
            return await then(suite)
        await suite.stopped()
        return 0

    def say_when(text: str) -> None:
        say(f"{time.strftime('%H:%M:%S')} {text}")

    return asyncio.run(Supervisor(home, env, ports=ports, say=say_when).run(started))


def _welcome(suite: Supervisor, seconds: float) -> str:
    root = suite.home.root
    token = shlex.quote(str(suite.home.secrets / OWNER_TOKEN))
    renew = hints.standalone("token", home=root)
    registry = suite.addresses.client("registry")
    reached = (
        "-plaintext" if suite.authorities is None else f"-cacert {shlex.quote(suite.authorities)}"
    )
    return "\n".join(
        [
            f"Qflow is ready after {seconds:.1f} s.",
            *(f"  {name:<13}{suite.addresses.client(name)}" for name in SERVICES),
            f"  {'database':<13}{suite.database}",
            f"  {'cache':<13}{suite.cache}",
            f"  {'isolation':<13}{told_isolation(suite.isolation)}",
            f"  {'home':<13}{root}",
            f"  {'owner token':<13}{token} (a new one, which ends this: {renew})",
            "Try:",
            f"  grpcurl {reached} {registry} list",
            f'  grpcurl {reached} -H "authorization: Bearer $(cat {token})" \\',
            f"      {registry} qflow.registry.v1.SessionService/GetCaller",
            "Stop with Ctrl-C.",
        ]
    )


def _status(home: Home) -> int:
    holder = home.holder()
    if holder is None:
        run = hints.make("run", home=home.root, env=os.environ)
        _say(f"no suite runs on {home.root}; start it with `{run}`")
        return _NOT_RUNNING
    try:
        endpoints: dict[str, str] = json.loads((home.run / "endpoints.json").read_text())
        metrics: dict[str, str] = json.loads((home.run / "metrics.json").read_text())
    except (OSError, ValueError):
        _say(f"a suite (process {holder}) is starting or stopping on {home.root}")
        return _FAILED
    from services.standalone.probe import serving  # imports gRPC: only here

    async def ask() -> list[bool]:
        authorities = endpoints.get(ENDPOINTS_KEY)
        return await asyncio.gather(*(serving(endpoints[name], authorities) for name in SERVICES))

    answers = asyncio.run(ask())
    _say(f"a suite (process {holder}) runs on {home.root}")
    for name, serves in zip(SERVICES, answers, strict=True):
        _say(f"  {name:<13}{endpoints[name]:<24}{'serving' if serves else 'NOT SERVING'}")
        _say(f"  {'':<13}http://{metrics[name]}/metrics")
    return 0 if all(answers) else _FAILED


def _token(home: Home) -> int:
    """Create a new token for the owner, starting the database if it is not running."""
    from services.standalone import people  # imports the registry: only here

    path = people.renew_owner_token(home)
    _say(f"the owner's token before this one no longer works; a new one lies in {path}")
    return 0


def _certificates(asked: argparse.Namespace, home: Home) -> int:
    from services.standalone import certificates  # imports cryptography: only here

    folder = home.tls if asked.folder is None else asked.folder
    _say(certificates.main(folder, asked.host, days=asked.days, renew=asked.renew))
    return 0


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the program's output


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.standalone", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    start = commands.add_parser("up", help="start the suite and stay (the default)")
    start.add_argument(
        "--ports",
        choices=["fixed", "auto"],
        default="fixed",
        help="fixed: QFLOW_PORT_BASE+1 to +4, by default 7101 to 7104, and metrics 10 above those; "
        "auto: any free ones",
    )
    commands.add_parser("demo", help="start, run a real workflow, print its result, stop")
    commands.add_parser("status", help="say what runs and whether it serves")
    commands.add_parser(
        "token", help="make a new token for the owner, end the one before, say where it lies"
    )
    # All further arguments belong to the doctor, options too: no prefix character here matches
    # them.
    doctor = commands.add_parser(
        "doctor",
        help="ask of every invariant of the database whether it holds",
        add_help=False,
        prefix_chars="+",
    )
    doctor.add_argument("arguments", nargs=argparse.REMAINDER)
    certificates = commands.add_parser(
        "certificates", help="make the certificates for TLS, or renew those that are due"
    )
    certificates.add_argument("--folder", type=Path, help="default: tls in the home")
    certificates.add_argument(
        "--host", action="append", default=[], help="a name or address that users dial"
    )
    certificates.add_argument("--days", type=int, choices=range(1, 367), default=7, metavar="DAYS")
    certificates.add_argument("--renew", action="store_true", help="make all services' anew")
    provisioned = commands.add_parser(
        "provision",
        help="for services started one by one: migrate the database, lay out the secrets of each",
    )
    provisioned.add_argument("--folder", type=Path, required=True, help="each service's lie below")
    provisioned.add_argument(
        "--host", action="append", default=[], help="a name or address that users dial"
    )
    provisioned.add_argument("--days", type=int, choices=range(1, 367), default=90, metavar="DAYS")
    arguments.add_to(commands)
    user = commands.add_parser(
        "create-user", help="make a user; asks for the password, or reads it from a pipe"
    )
    user.add_argument("--email", required=True)
    user.add_argument("--role", default="user", choices=["viewer", "user", "admin"])
    parser.set_defaults(ports="fixed")
    return parser
