"""The orchestrator put together."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from uuid import UUID

import asyncpg
import structlog
from qflow.orchestrator.v1.attach_service_pb2_grpc import add_AttachServiceServicer_to_server
from qflow.orchestrator.v1.event_subscription_service_pb2_grpc import (
    add_EventSubscriptionServiceServicer_to_server,
)
from qflow.orchestrator.v1.execution_service_pb2_grpc import (
    add_ExecutionServiceServicer_to_server,
)
from qflow.orchestrator.v1.schedule_service_pb2_grpc import add_ScheduleServiceServicer_to_server
from qflow.orchestrator.v1.trigger_service_pb2_grpc import add_TriggerServiceServicer_to_server

from services.kit.errors import Unavailable
from services.kit.listen import listen
from services.kit.pg import open_pool, prepare_connection
from services.kit.rpc.auth import Authenticator
from services.kit.rpc.server import Listener
from services.kit.run import App, Loop, listener
from services.orchestrator.engine.engine import Engine, Loaded
from services.orchestrator.engine.journal import FencedError
from services.orchestrator.engine.member import Member
from services.orchestrator.gateways.webhook_key import read_or_make
from services.orchestrator.gateways.webhooks import Webhooks
from services.orchestrator.loops.events import deliver_events
from services.orchestrator.loops.lease import keep_lease
from services.orchestrator.loops.schedules import run_schedules
from services.orchestrator.loops.sweep import sweep_runners, watch_locks
from services.orchestrator.rpc.attach import AttachServicer
from services.orchestrator.rpc.event_subscriptions import EventSubscriptionServicer
from services.orchestrator.rpc.executions import ExecutionServicer
from services.orchestrator.rpc.schedules import ScheduleServicer
from services.orchestrator.rpc.triggers import TriggerServicer
from services.orchestrator.settings import Settings
from services.orchestrator.usecases.event_courier import Courier
from services.orchestrator.usecases.event_subscriptions import Subscribing
from services.orchestrator.usecases.plans import Plans
from services.orchestrator.usecases.read import Reader
from services.orchestrator.usecases.recover import load
from services.orchestrator.usecases.schedule_runs import Scheduler
from services.orchestrator.usecases.start import Starter

log = structlog.get_logger()

_FLUSH_POLL_S = 0.01


@asynccontextmanager
async def build(env: Mapping[str, str]) -> AsyncIterator[App]:
    """Put the orchestrator together, own the shards, load what is open."""
    settings = Settings.from_env(env)
    lock = _lock_home(settings.home)
    api_pool = await open_pool(
        settings.database_url,
        application_name="qflow-orchestrator",
        setting="QFLOW_ORCHESTRATOR_DATABASE_URL",
        size_max=settings.pool_size_max,
    )
    engine_pool = await open_pool(
        settings.engine_database_url,
        application_name="qflow-engine",
        setting="QFLOW_ORCHESTRATOR_ENGINE_DATABASE_URL",
        size_max=3,
    )
    plans = Plans()
    member = Member(
        engine_pool,
        host=f"{socket.gethostname()}:{settings.home}",
        address=settings.attach_listen,
        proof=True,
        ttl_s=settings.lease_ttl_s,
    )
    reader = Reader(api_pool, engine_pool, plans)

    async def load_open(ids: Sequence[UUID] | None) -> Loaded:
        return await load(engine_pool, plans, ids)

    engine = Engine(
        member=member,
        connect=partial(_connect_journal, settings.engine_database_url),
        load=load_open,
    )
    starter = Starter(api_pool, engine_pool, engine, plans)
    scheduler = Scheduler(pool=engine_pool, starter=starter, reader=reader, engine=engine)
    schedules_changed, events_changed = asyncio.Event(), asyncio.Event()
    webhook_key = read_or_make(settings.webhook_key_file)
    webhooks = Webhooks(loopback=settings.webhook_loopback)
    courier = Courier(engine_pool, webhooks, webhook_key, done=events_changed.set)
    subscribing = Subscribing(api_pool, webhook_key, loopback=settings.webhook_loopback)
    await engine.begin()
    writing = asyncio.create_task(engine.run())
    try:
        yield App(
            listener=listener(env, "orchestrator", "127.0.0.1:7102"),
            authenticator=Authenticator(api_pool),
            servicers=[
                (
                    add_ExecutionServiceServicer_to_server,
                    ExecutionServicer(starter=starter, reader=reader, engine=engine),
                ),
                (add_ScheduleServiceServicer_to_server, ScheduleServicer(starter)),
                (
                    add_EventSubscriptionServiceServicer_to_server,
                    EventSubscriptionServicer(subscribing),
                ),
                (add_TriggerServiceServicer_to_server, TriggerServicer(starter)),
            ],
            internal_listener=Listener(address=settings.attach_listen, public=False),
            internal_servicers=[
                (add_AttachServiceServicer_to_server, AttachServicer(engine, engine_pool))
            ],
            loops=[
                partial(_until_fenced, partial(_follow, writing)),
                partial(_until_fenced, partial(keep_lease, engine)),
                partial(sweep_runners, engine, engine_pool),
                partial(watch_locks, engine, engine_pool),
                partial(run_schedules, scheduler, schedules_changed),
                partial(deliver_events, courier, events_changed),
                partial(
                    _listen,
                    settings,
                    {"qflow_schedules": schedules_changed, "qflow_events": events_changed},
                ),
            ],
            on_drain=partial(_drain, engine, writing),
        )
    finally:
        await webhooks.close()
        writing.cancel()
        try:
            await member.rest(state="gone")
        except (Unavailable, asyncpg.PostgresError, OSError):
            log.warning("member_not_signed_off")
        await engine.journal.close()
        await api_pool.close()
        await engine_pool.close()
        os.close(lock)


async def _listen(
    settings: Settings, events: Mapping[str, asyncio.Event], stop: asyncio.Event
) -> None:
    url = settings.engine_database_url
    await listen(url, events, stop, application_name="qflow-listener")


async def _until_fenced(loop: Loop, stop: asyncio.Event) -> None:
    """End the process in order when another member owns the runs now: that is no fault."""
    try:
        await loop(stop)
    except FencedError:
        log.warning("member_fenced")
        stop.set()


async def _follow(writing: asyncio.Task[None], stop: asyncio.Event) -> None:
    """Take the process down when the journal fails. It goes on writing while calls drain."""
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({writing, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if writing.done():
        await writing


async def _drain(engine: Engine, writing: asyncio.Task[None]) -> None:
    """Write what is queued, unless nothing writes any more; runners go on with what they have."""
    while not (engine.journal.idle or writing.done()):  # noqa: ASYNC110  # milliseconds, once per process
        await asyncio.sleep(_FLUSH_POLL_S)


async def _connect_journal(url: str) -> asyncpg.Connection[asyncpg.Record]:
    """Open the journal's connection.

    Its statements find rows by key. Planned while the tables are small, they must not choose to
    read them whole, since a prepared plan stays when the tables have grown.
    """
    db = await asyncpg.connect(
        url,
        timeout=5,
        command_timeout=30,
        server_settings={
            "application_name": "qflow-journal",
            "statement_timeout": "60000",
            "lock_timeout": "2000",  # a row that somebody holds holds up one try, not every run
            "enable_seqscan": "off",
            "enable_hashjoin": "off",
            "enable_mergejoin": "off",
            "plan_cache_mode": "force_generic_plan",
            "jit": "off",
        },
    )
    await prepare_connection(db)
    return db


def _lock_home(home: Path) -> int:
    """Hold the home's lock: whoever has it knows that no other orchestrator of it is alive."""
    folder = home / "run"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(folder / "orchestrator.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise Unavailable(
            "HOME_LOCKED", f"another orchestrator runs on {home}; stop it or use another QFLOW_HOME"
        ) from None
    return lock
