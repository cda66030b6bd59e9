"""Run a real workflow on a suite of its own, show how to go on, stop."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from typing import Final

from rich.console import Console

from services.standalone import addresses, bootstrap
from services.standalone.addresses import SERVICES, Ports
from services.standalone.home import Home
from services.standalone.process import StandaloneError
from services.standalone.supervisor import Supervisor, nothing_runs, told_isolation

# What a shell gives for a program that Ctrl-C ended.
_INTERRUPTED: Final = 130


def demo(home: Home, env: Mapping[str, str], *, say: Callable[[str], None]) -> int:
    """Start the suite, run the example with live progress, print how to go on, stop.

    On a home whose suite runs already that one is used and left running.
    """
    console = Console(highlight=False, soft_wrap=True)
    if home.holder() is not None:
        say(f"Using the suite that runs on {home.root}.")
        code = asyncio.run(_example(_endpoints(home), home, console))
    else:
        say("Starting the suite (PostgreSQL, Redis and four services) …")
        code = _alone(home, env, console, ports=_ports(env, home), say=say)
        say("The suite has stopped.")
    if code == 0:
        say(_how_to_go_on(home))
    return code


def _alone(
    home: Home,
    env: Mapping[str, str],
    console: Console,
    *,
    ports: Ports,
    say: Callable[[str], None],
) -> int:
    suite = Supervisor(home, env, ports=ports, say=say)
    ended: list[int] = []

    async def then(started: Supervisor) -> int:
        say(f"Ready: {started.database}; cache: {started.cache}.")
        say(f"Isolation: {told_isolation(started.isolation)}.")
        if refused := nothing_runs(started.isolation, env):
            raise StandaloneError(refused)
        ended.append(await _example(started.addresses.as_json(), home, console))
        return ended[0]

    try:
        code = asyncio.run(suite.run(then))
        return code if ended or code else _INTERRUPTED
    except StandaloneError as error:
        if ports == "auto" or "cannot listen on" not in str(error):
            raise
        # Somebody took a port between our look and the service's start.
        say("A port was taken meanwhile; starting again on free ones …")
        return _alone(home, env, console, ports="auto", say=say)


async def _example(endpoints: Mapping[str, str], home: Home, console: Console) -> int:
    from examples.demo import run  # late: it loads the client

    token = (home.secrets / bootstrap.OWNER_TOKEN).read_text(encoding="utf-8").strip()
    return await run({name: endpoints[name] for name in SERVICES}, token, console)


def _endpoints(home: Home) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads((home.run / "endpoints.json").read_text("utf-8"))
    except (OSError, ValueError):
        raise StandaloneError(
            f"the suite on {home.root} is starting or stopping; try again in a moment"
        ) from None
    return found


def _ports(env: Mapping[str, str], home: Home) -> Ports:
    """Prefer the ports that the guides name; a demo must not fail because one is taken."""
    try:
        home.make()
        addresses.plan(env, ports="fixed", sockets=home.sockets())
    except StandaloneError:
        return "auto"
    return "fixed"


def _how_to_go_on(home: Home) -> str:
    python = sys.executable
    return "\n".join(
        [
            "",
            "How to go on:",
            "  make run       start the suite and stay; what the demo made is still there",
            f"  {python} -m services.standalone status    what runs and where",
            "  make test      run the tests",
            "  examples/      the nodes of this demo: plain annotated functions",
            f"Everything is kept in {home.root}; delete that folder to begin anew.",
        ]
    )
