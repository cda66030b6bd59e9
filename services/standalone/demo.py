"""Run a real workflow on a suite, and print what to do next."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from rich.console import Console

from services.standalone import addresses, bootstrap, hints
from services.standalone.addresses import SERVICES
from services.standalone.home import Home
from services.standalone.isolation import nothing_runs, told_isolation
from services.standalone.process import StandaloneError
from services.standalone.supervisor import Supervisor
from services.standalone.tls_files import ENDPOINTS_KEY

# The exit code of a program interrupted by Ctrl-C.
_INTERRUPTED: Final = 130
# Alternatives if the ports named in the guides are taken.
_OTHER_BASES: Final = range(7200, 8100, 100)


def demo(home: Home, env: Mapping[str, str], *, say: Callable[[str], None]) -> int:
    """Start the suite, run the example with live progress, print the next steps, and stop.

    If a suite already runs on this home, it is used and left running.
    """
    console = Console(highlight=False, soft_wrap=True)
    holder = home.holder()
    if holder is not None:
        say(f"Using the suite that runs on {home.root}.")
        code = asyncio.run(_example(_endpoints(home), home, console))
        go_on = ("stop the suite, or press Ctrl-C where it was started", f"kill {holder}")
    else:
        say("Starting the suite (PostgreSQL, Redis and four services) …")
        code, env = _alone(home, env, console, say=say)
        say("The suite has stopped.")
        run = hints.make("run", home=home.root, env=env)
        go_on = ("start the suite and stay; what the demo made is still there", run)
    if code == 0:
        say(_how_to_go_on(home, env, go_on))
    return code


def _alone(
    home: Home,
    env: Mapping[str, str],
    console: Console,
    *,
    say: Callable[[str], None],
    again: bool = False,
) -> tuple[int, Mapping[str, str]]:
    """Run it on a suite started for it.

    Returns the exit code and the settings with the ports used.
    """
    env = _on_free_ports(env, say=say)
    suite = Supervisor(home, env, ports="fixed", say=say)
    ended: list[int] = []

    async def then(started: Supervisor) -> int:
        say(f"Ready: {started.database}; cache: {started.cache}.")
        say(f"Isolation: {told_isolation(started.isolation)}.")
        if refused := nothing_runs(started.isolation, env):
            raise StandaloneError(refused)
        ended.append(await _example(started.endpoints(), home, console))
        return ended[0]

    try:
        code = asyncio.run(suite.run(then))
        return (code if ended or code else _INTERRUPTED), env
    except StandaloneError as error:
        if again or "cannot listen on" not in str(error):
            raise
        # A port was taken between the check and the service's start.
        say("A port was taken meanwhile; starting again on free ones …")
        return _alone(home, env, console, say=say, again=True)


async def _example(endpoints: Mapping[str, str], home: Home, console: Console) -> int:
    from examples.demo import run  # imported late: loads the client
    from services.standalone.reach import open_local

    token_file = home.secrets / bootstrap.OWNER_TOKEN
    authorities = endpoints.get(ENDPOINTS_KEY)
    return await run(
        {name: endpoints[name] for name in SERVICES},
        token_file,
        console,
        connect=partial(open_local, authorities=authorities),
        authorities=authorities,
    )


def _endpoints(home: Home) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads((home.run / "endpoints.json").read_text("utf-8"))
    except (OSError, ValueError):
        raise StandaloneError(
            f"the suite on {home.root} is starting or stopping; try again shortly"
        ) from None
    return found


def _on_free_ports(env: Mapping[str, str], *, say: Callable[[str], None]) -> Mapping[str, str]:
    """Use the ports named in the guides, or other ones if one of them is taken.

    Others are set in the same way as for `make run`, so that the printed commands work there too.
    """
    try:
        addresses.plan(env, ports="fixed", sockets=Path())
    except addresses.PortTakenError as taken:
        for base in _OTHER_BASES:
            moved = {**env, "QFLOW_PORT_BASE": str(base)}
            with suppress(addresses.PortTakenError):
                addresses.plan(moved, ports="fixed", sockets=Path())
                last = base + len(SERVICES)
                say(f"Port {taken.port} is taken: this demo listens on {base + 1} to {last}.")
                return moved
        raise
    return env


def _how_to_go_on(home: Home, env: Mapping[str, str], first: tuple[str, str]) -> str:
    commands = [
        first,
        ("what runs and where", hints.standalone("status", home=home.root)),
        ("run the tests", hints.make("test", home=hints.HOME_DEFAULT, env={})),
    ]
    servers = [name for name in ("QFLOW_DATABASE_URL", "QFLOW_REDIS_URL") if env.get(name)]
    return "\n".join(
        [
            "",
            "How to go on:",
            *(f"  # {what}\n  {command}" for what, command in commands),
            *([f"each with {' and '.join(servers)} as it is set now."] if servers else []),
            "The nodes of this demo are plain annotated functions: examples/weather/nodes",
            f"Everything is kept in {home.root}; delete that folder to begin anew.",
        ]
    )
