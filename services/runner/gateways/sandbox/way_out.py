"""The only way out of a sandbox with egress: a socket on its loopback, served from outside.

The agent opens it inside, before user code is read, and passes it out. The socket listens in the
sandbox's network, while its server runs in the machine's: so no proxy runs beside user code, and no
path of the machine has to be visible in the sandbox.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from services.runner.domain.network import Reach
from services.runner.gateways.sandbox.port import Header, Reply, SandboxDied, SandboxSpec


class _Asked(Protocol):
    spec: SandboxSpec

    @property
    def ended(self) -> Any: ...

    def request(
        self,
        header: Header,
        body: bytes = b"",
        *,
        reply_bytes_max: int = ...,
        descriptors_max: int = ...,
    ) -> Awaitable[Reply]: ...


async def make_ready(sandbox: _Asked, setup: Header) -> None:
    """Have the agent drop its privileges, and serve its way out, if it has one."""
    serve = sandbox.spec.egress
    if sandbox.spec.limits.network.reach is not Reach.EGRESS:
        serve = None
    elif serve is None:
        raise SandboxDied("there is no proxy for its network")
    ready = await sandbox.request(
        {**setup, "egress": serve is not None}, descriptors_max=0 if serve is None else 1
    )
    if ready.header.get("op") != "ready":
        _close(ready)
        raise SandboxDied(f"the agent is not ready: {ready.header.get('why', '')}")
    if serve is None:
        return
    if len(ready.descriptors) != 1:
        _close(ready)
        raise SandboxDied("the agent cannot pass its socket out of this runtime")
    try:
        end: Callable[[], None] = serve(ready.descriptors[0])
    except OSError as problem:
        raise SandboxDied(f"the proxy does not start: {problem.strerror}") from problem
    sandbox.ended.add_done_callback(lambda _: end())


def _close(reply: Reply) -> None:
    for descriptor in reply.descriptors:
        os.close(descriptor)
