"""A gRPC server with the limits and stages of every service, health checks and reflection."""

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

# A stopping server is closed once no call arrived for _QUIET_S, or after _REFUSE_MAX_S.
_QUIET_S: Final = 0.005
_REFUSE_MAX_S: Final = 0.5
# How long before the end of the grace period waiting calls are ended with an error.
_TELL_S: Final = 0.5
_NOWHERE: Final = "unix:nowhere"  # never connected to

# A generated `add_XServicer_to_server` function, and a servicer for it.
Servicer = tuple[Callable[[Any, Any], None], object]


@dataclass(frozen=True, slots=True)
class BoundServer:
    """A server, and the address that it is bound to."""

    server: grpc.aio.Server
    address: str
    _handlers: Handlers

    @property
    def services(self) -> Sequence[str]:
        """Full names of the services it serves."""
        return self._handlers.services

    async def start(self) -> None:
        """Start to serve."""
        await self.server.start()

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, tell streams to resume elsewhere, and let other calls finish."""
        ends_at = time.monotonic() + grace_s
        await self._refuse(min(_REFUSE_MAX_S, grace_s))
        left_s = max(0.0, ends_at - time.monotonic())
        stopping = asyncio.ensure_future(self.server.stop(left_s))
        self._handlers.streams.end()
        await asyncio.wait({stopping}, timeout=max(left_s - _TELL_S, left_s / 2))
        # Otherwise gRPC would end calls that are still open as cancelled.
        self._handlers.end()
        await stopping

    async def _refuse(self, longest_s: float) -> None:
        """Refuse new unary calls until none arrived for a moment.

        A stopping gRPC server drops calls that it has not handed over yet, as if their callers had
        cancelled them.
        """
        self._handlers.refuse()
        with suppress(TimeoutError):
            async with asyncio.timeout(longest_s), grpc.aio.insecure_channel(_NOWHERE) as idle:
                looked_at = -1
                while looked_at != self._handlers.looked_at:
                    looked_at = self._handlers.looked_at
                    await asyncio.sleep(_QUIET_S)
                    # A pause alone proves nothing while gRPC's own threads get no processor time.
                    # Its only queue is in order: an event that leaves it now was behind all calls
                    # that gRPC had for this loop.
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
    """Build a server and bind it; it serves once it is started.

    Raises for plain text anywhere but on the loopback interface and unix sockets, and for an RPC
    whose contract has no rule on who may call it.
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
