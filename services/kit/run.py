"""A process of the suite from start to end: one task group, and one way to stop."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Final

import structlog
import uvloop
from grpc_health.v1.health_pb2 import HealthCheckResponse

from services.kit import env as settings
from services.kit import log as logging
from services.kit import machine, page, traces
from services.kit.audit import Recorder
from services.kit.figures import Figures
from services.kit.rpc import tls
from services.kit.rpc.health import Dependency, Health
from services.kit.rpc.identity import Authenticator
from services.kit.rpc.listener import Listener
from services.kit.rpc.server import BoundServer, Servicer, open_server
from services.kit.rpc.tally import Calls
from services.kit.scrape import address_of, scraped

log = structlog.get_logger()

# Together 30 seconds from the signal to the end of the process.
DRAIN_MAX_S: Final = 27.0
_CLOSE_MAX_S: Final = 3.0
# How much of the drain time is kept for calls that are still open.
_CALLS_MIN_S: Final = 2.0
_RECORD_MAX_S: Final = 1.0
# Calls create few cycles: collecting every 700 objects would mostly find nothing.
_GARBAGE_THRESHOLDS: Final = (20_000, 20, 50)
_OK: Final = 0
_CRASHED: Final = 1
_MISCONFIGURED: Final = 2

Loop = Callable[[asyncio.Event], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """An assembled service: what it serves, its loops, and how it shuts down."""

    listener: Listener
    authenticator: Authenticator
    servicers: Sequence[Servicer]
    internal_listener: Listener | None = None
    internal_servicers: Sequence[Servicer] = ()
    # Each runs until its event is set; one that raises takes the process down.
    loops: Sequence[Loop] = ()
    # Its metrics, for scrapes.
    figures: Sequence[Figures] = ()
    # Its dependencies, for health checks.
    dependencies: Sequence[Dependency] = ()
    # Called once all addresses are bound, before anything is served and any loop runs: a process
    # that cannot listen must not be announced to others.
    join: Callable[[], Awaitable[None]] | None = None
    # Called after health reports NOT_SERVING and before calls are ended; limited to 25 s.
    on_drain: Callable[[], Awaitable[None]] | None = None
    # Audits calls that change something.
    recorder: Recorder | None = None


# Entered before anything listens; exited last, when no call and no loop runs any more.
Build = Callable[[Mapping[str, str]], AbstractAsyncContextManager[App]]


def run_service(name: str, build: Build) -> int:
    """Run a service until it is stopped or fails; return the exit code of the process."""
    logging.configure(name, level=os.environ.get("QFLOW_LOG_LEVEL", "info"))
    try:
        machine.claim()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(name, build, settings.with_secrets(os.environ)))
    except settings.EnvError as error:
        log.error("service_misconfigured", fault=str(error))  # noqa: TRY400  # no traceback needed
        return _MISCONFIGURED
    except Exception:
        log.exception("service_failed")
        return _CRASHED


def listener(
    env: Mapping[str, str], service: str, default: str, *, suffix: str = "LISTEN"
) -> Listener:
    """Read where a service listens: `QFLOW_<SERVICE>_LISTEN`, with TLS if configured."""
    public = suffix == "LISTEN"
    return Listener(
        address=settings.text(env, f"QFLOW_{service.upper()}_{suffix}", default),
        public=public,
        calls_per_second_max=settings.integer(env, "QFLOW_CALLS_PER_SECOND_MAX", 0, high=1_000_000),
        tls=tls.users_tls(env) if public else tls.services_tls(env),
        services_prove=tls.service_pair(env) is not None,
    )


async def _run(name: str, build: Build, env: Mapping[str, str]) -> int:
    stop = asyncio.Event()
    starting = asyncio.current_task()
    assert starting is not None
    # Nothing is served yet, so there is nothing to drain: a start is simply cancelled.
    _on_signals(starting.cancel)
    secret = settings.optional(env, "QFLOW_SERVICE_TOKEN")
    if secret is not None:
        page.configure(secret)
    started = time.monotonic()
    stack = AsyncExitStack()
    try:
        await stack.enter_async_context(traces.told(name, env))
        app = await stack.enter_async_context(build(env))
        probe = Health(name, app.dependencies)
        await probe.set("", HealthCheckResponse.NOT_SERVING)
        metrics_address = address_of(env, name)
        calls = None if metrics_address is None else Calls()
        servers = await _listen(app, probe, env, calls)
        told = [*app.figures, *([calls.figures] if calls else [])]
        async with scraped(metrics_address, told) as metrics:
            if app.join is not None:
                await app.join()
            _on_signals(stop.set)
            settle_garbage()
            await _serve(app, servers, probe, stop, started=started, metrics=metrics)
    except BaseExceptionGroup as group:
        raise _cause(group) from None
    except asyncio.CancelledError:
        log.info("start_given_up")
    finally:
        await _close(stack)
    log.info("service_stopped")
    return _OK


async def _listen(
    app: App, probe: Health, env: Mapping[str, str], calls: Calls | None
) -> list[BoundServer]:
    """Bind all addresses; nothing is served before the servers are started."""
    servers: list[BoundServer] = []
    pairs = [(app.listener, app.servicers)]
    if app.internal_listener is not None:
        pairs.append((app.internal_listener, app.internal_servicers))
    for where, servicers in pairs:
        server = await open_server(
            where,
            servicers,
            authenticator=app.authenticator,
            health_servicer=probe,
            with_reflection=settings.flag(env, "QFLOW_REFLECTION", default=True),
            calls=calls,
            recorder=app.recorder,
            tracer=traces.tracer(),
        )
        servers.append(server)
    return servers


async def _serve(
    app: App,
    servers: Sequence[BoundServer],
    probe: Health,
    stop: asyncio.Event,
    *,
    started: float,
    metrics: str | None,
) -> None:
    async with asyncio.TaskGroup() as tasks:
        recording = () if app.recorder is None else (app.recorder.write_until,)
        for loop in (*app.loops, *recording):
            tasks.create_task(_run_loop(loop, stop))
        try:
            for server in servers:
                await server.start()
            await probe.start(service for server in servers for service in server.services)
            log.info(
                "service_started",
                addresses=[server.address for server in servers],
                metrics=metrics,
                pid=os.getpid(),
                start_ms=round((time.monotonic() - started) * 1000),
            )
            await stop.wait()
        finally:
            # Shielded explicitly: this also runs when a loop crashed and the group is cancelled.
            stop.set()
            await asyncio.shield(_drain(app, servers, probe))


async def _run_loop(loop: Loop, stop: asyncio.Event) -> None:
    await loop(stop)


async def _drain(app: App, servers: Sequence[BoundServer], probe: Health) -> None:
    """Report NOT_SERVING, run `on_drain`, end calls, and flush the audit records."""
    ends_at = time.monotonic() + DRAIN_MAX_S
    log.info("service_draining")
    await probe.enter_graceful_shutdown()
    if app.on_drain is not None:
        try:
            async with asyncio.timeout(DRAIN_MAX_S - _CALLS_MIN_S):
                await app.on_drain()
        except Exception:
            log.exception("drain_failed")
    grace_s = max(0.0, ends_at - time.monotonic())
    await asyncio.gather(*(server.stop(grace_s) for server in servers))
    if app.recorder is not None:
        try:
            async with asyncio.timeout(_RECORD_MAX_S):
                await app.recorder.close()
        except TimeoutError:
            log.error("audit_records_lost")  # noqa: TRY400  # no traceback needed


async def _close(stack: AsyncExitStack) -> None:
    """Close connections in bounded time: a silent peer must not keep the process alive."""
    try:
        async with asyncio.timeout(_CLOSE_MAX_S):
            await stack.aclose()
    except TimeoutError:
        log.warning("close_timed_out")


def settle_garbage() -> None:
    """Exclude what exists after the start from garbage collection, and collect less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GARBAGE_THRESHOLDS)


def _on_signals(end: Callable[[], object]) -> None:
    """Set the handler of SIGTERM and SIGINT."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)


def _cause(error: BaseException) -> BaseException:
    """Return the first error of a task group: the others only follow from it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def main(name: str, build: Build) -> None:
    """Run a service and exit with its code: the only line of every `__main__`."""
    sys.exit(run_service(name, build))
