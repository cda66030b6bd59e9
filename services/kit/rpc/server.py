"""A gRPC server as every service of the suite runs it: limits, stages, health and reflection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2_grpc

from services.kit.audit import Recorder
from services.kit.rpc import reflection
from services.kit.rpc.handlers import Handlers
from services.kit.rpc.identity import Authenticator
from services.kit.rpc.listener import UNKNOWN_FACTOR, Listener, bind, options_of
from services.kit.rpc.tally import Calls
from services.kit.traces import Tracer

# How long no call must have come before a server that stops is closed, and how long such a moment
# is awaited.
_QUIET_S: Final = 0.005
_REFUSE_MAX_S: Final = 0.5
# How long before the end those are told who still wait.
_TELL_S: Final = 0.5
_NOWHERE: Final = "unix:nowhere"  # never connected to

# The `add_XServicer_to_server` function that the generator wrote, and a servicer for it.
Servicer = tuple[Callable[[Any, Any], None], object]


@dataclass(frozen=True, slots=True)
class BoundServer:
    """A server with the address it got."""

    server: grpc.aio.Server
    address: str
    _handlers: Handlers

    @property
    def services(self) -> Sequence[str]:
        """Full names of what it serves."""
        return self._handlers.services

    async def start(self) -> None:
        """Begin to answer."""
        await self.server.start()

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, tell streams to go elsewhere, give the other calls time to end."""
        ends_at = time.monotonic() + grace_s
        await self._refuse(min(_REFUSE_MAX_S, grace_s))
        left_s = max(0.0, ends_at - time.monotonic())
        stopping = asyncio.ensure_future(self.server.stop(left_s))
        self._handlers.streams.end()
        await asyncio.wait({stopping}, timeout=max(left_s - _TELL_S, left_s / 2))
        # gRPC would say of what is open at the end that its callers cancelled.
        self._handlers.end()
        await stopping

    async def _refuse(self, longest_s: float) -> None:
        """Answer new calls that they go elsewhere, until none came for a moment.

        gRPC drops what waits to be looked at when a server stops, and those callers would read
        that they cancelled.
        """
        self._handlers.refuse()
        with suppress(TimeoutError):
            async with asyncio.timeout(longest_s), grpc.aio.insecure_channel(_NOWHERE) as idle:
                looked_at = -1
                while looked_at != self._handlers.looked_at:
                    looked_at = self._handlers.looked_at
                    await asyncio.sleep(_QUIET_S)
                    # Time alone says nothing where gRPC's own threads do not get a processor.
                    # Its one queue keeps the order: what comes out of it now was behind all calls
                    # that it had for this loop.
                    await idle.wait_for_state_change(grpc.ChannelConnectivity.SHUTDOWN)


async def open_server(
    listener: Listener,
    servicers: Sequence[Servicer],
    *,
    authenticator: Authenticator,
    health_servicer: health.aio.HealthServicer,
    with_reflection: bool = True,
    calls: Calls | None = None,
    recorder: Recorder | None = None,
    tracer: Tracer | None = None,
) -> BoundServer:
    """Build a server and bind it; it answers once started.

    Refuses plain text anywhere but on the loopback interface and unix sockets, and any RPC whose
    contract does not say who may call it.
    """
    server = grpc.aio.server(
        options=options_of(listener),
        maximum_concurrent_rpcs=listener.concurrent_max * UNKNOWN_FACTOR,
    )
    registering: Any = Handlers(listener, authenticator, calls, recorder, tracer)
    server.add_generic_rpc_handlers((registering,))
    for add_to_server, servicer in servicers:
        add_to_server(servicer, registering)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, registering)
    if with_reflection:
        reflection.add_to_server(registering, registering.services)
    return BoundServer(server, bind(server, listener), registering)
