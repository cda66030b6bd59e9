"""The orchestrator put together."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import asyncpg
import structlog
from qflow.orchestrator.v1.attach_service_pb2_grpc import add_AttachServiceServicer_to_server
from qflow.orchestrator.v1.control_service_pb2_grpc import add_ControlServiceServicer_to_server
from qflow.orchestrator.v1.event_subscription_service_pb2_grpc import (
    add_EventSubscriptionServiceServicer_to_server,
)
from qflow.orchestrator.v1.execution_service_pb2_grpc import (
    add_ExecutionServiceServicer_to_server,
)
from qflow.orchestrator.v1.explain_service_pb2_grpc import add_ExplainServiceServicer_to_server
from qflow.orchestrator.v1.limit_service_pb2_grpc import add_LimitServiceServicer_to_server
from qflow.orchestrator.v1.peer_service_pb2_grpc import add_PeerServiceServicer_to_server
from qflow.orchestrator.v1.placement_service_pb2_grpc import (
    add_PlacementServiceServicer_to_server,
)
from qflow.orchestrator.v1.plan_service_pb2_grpc import add_PlanServiceServicer_to_server
from qflow.orchestrator.v1.quota_service_pb2_grpc import add_QuotaServiceServicer_to_server
from qflow.orchestrator.v1.rerun_service_pb2_grpc import add_RerunServiceServicer_to_server
from qflow.orchestrator.v1.run_service_pb2_grpc import add_RunServiceServicer_to_server
from qflow.orchestrator.v1.schedule_service_pb2_grpc import add_ScheduleServiceServicer_to_server
from qflow.orchestrator.v1.trigger_service_pb2_grpc import add_TriggerServiceServicer_to_server

from services.kit import traces
from services.kit.at_rest import data_at_rest
from services.kit.audit import Recorder
from services.kit.env import EnvError
from services.kit.figures import caches, pools
from services.kit.lane import Lanes
from services.kit.listen import listen
from services.kit.pg import open_pool, prepare_connection
from services.kit.rpc.health import database
from services.kit.rpc.identity import Authenticator
from services.kit.run import App, Loop, listener
from services.orchestrator.engine.engine import Engine
from services.orchestrator.engine.journal import FencedError
from services.orchestrator.engine.member import Member
from services.orchestrator.engine.shards import Shards
from services.orchestrator.engine.treasury import Treasury
from services.orchestrator.gateways.peers import Peers
from services.orchestrator.gateways.webhook_key import read_or_make
from services.orchestrator.gateways.webhooks import Webhooks
from services.orchestrator.loops.events import deliver_events
from services.orchestrator.loops.lease import keep_lease
from services.orchestrator.loops.limits import keep_limits
from services.orchestrator.loops.members import judge_strays, keep_share, tell_demand
from services.orchestrator.loops.quotas import keep_quotas
from services.orchestrator.loops.result_cache import keep_cache
from services.orchestrator.loops.schedules import run_schedules
from services.orchestrator.loops.sweep import sweep_runners, watch_locks
from services.orchestrator.loops.writing import Writer
from services.orchestrator.rpc.attach import AttachServicer
from services.orchestrator.rpc.controls import ControlServicer
from services.orchestrator.rpc.event_subscriptions import EventSubscriptionServicer
from services.orchestrator.rpc.executions import ExecutionServicer
from services.orchestrator.rpc.explanations import ExplainServicer
from services.orchestrator.rpc.limits import LimitServicer
from services.orchestrator.rpc.peer import PeerServicer
from services.orchestrator.rpc.placements import PlacementServicer
from services.orchestrator.rpc.planning import PlanServicer
from services.orchestrator.rpc.quotas import QuotaServicer
from services.orchestrator.rpc.reruns import RerunServicer
from services.orchestrator.rpc.runs import RunServicer
from services.orchestrator.rpc.schedules import ScheduleServicer
from services.orchestrator.rpc.triggers import TriggerServicer
from services.orchestrator.settings import Settings
from services.orchestrator.storage.limit_slots import CHANNEL as LIMITS_CHANNEL
from services.orchestrator.storage.limit_slots import freed_by
from services.orchestrator.storage.shards import CHANNEL
from services.orchestrator.usecases.agenda import glance
from services.orchestrator.usecases.controls import Controls
from services.orchestrator.usecases.event_courier import Courier
from services.orchestrator.usecases.event_subscriptions import Subscribing
from services.orchestrator.usecases.figures import figures_of
from services.orchestrator.usecases.forward import Router
from services.orchestrator.usecases.limits import LimitKeeper
from services.orchestrator.usecases.overlaps import Overlaps
from services.orchestrator.usecases.plans import Plans
from services.orchestrator.usecases.quotas import QuotaKeeper
from services.orchestrator.usecases.read import Reader
from services.orchestrator.usecases.recover import load
from services.orchestrator.usecases.rerun import Rerunner
from services.orchestrator.usecases.schedule_ends import RunEnds
from services.orchestrator.usecases.schedule_runs import Scheduler
from services.orchestrator.usecases.start import Starter
from services.orchestrator.usecases.trace import told_by
from services.orchestrator.usecases.watch import Watcher

log = structlog.get_logger()

_LOCK_WAIT_S = 2.0
_LOCK_POLL_S = 0.05  # of a standby, which is to take over within half a second


@asynccontextmanager
async def build(env: Mapping[str, str]) -> AsyncIterator[App]:
    """Put the orchestrator together; `join` owns the shards and loads what is open."""
    settings = Settings.from_env(env)
    at_rest = data_at_rest(env)
    api_pool = await open_pool(
        settings.database_url,
        application_name="qflow-orchestrator",
        setting="QFLOW_ORCHESTRATOR_DATABASE_URL",
        size_max=settings.pool_size_max,
        opened=at_rest.opened,
    )
    engine_pool = await open_pool(
        settings.engine_database_url,
        application_name="qflow-engine",
        setting="QFLOW_ORCHESTRATOR_ENGINE_DATABASE_URL",
        size_max=3,
        opened=at_rest.opened,
    )
    try:
        await at_rest.begin(engine_pool)
    except EnvError:
        await api_pool.close()
        await engine_pool.close()
        raise
    # The last thing to wait for: one that stands by has all else done when its turn comes.
    lock = await _lock_home(settings.home, standby=settings.standby)
    plans = Plans()
    shards = Shards()
    schedules_changed, events_changed = asyncio.Event(), asyncio.Event()
    member = Member(
        engine_pool,
        host=f"{socket.gethostname()}:{settings.home}",
        address=settings.attach_advertise,
        proof=True,
        ttl_s=settings.lease_ttl_s,
        glance=partial(glance, schedules_changed, events_changed),
    )
    reader = Reader(api_pool, engine_pool, plans)

    engine = Engine(
        member=member,
        connect=lambda: _connect_journal(
            settings.engine_database_url,
            partial(_heard, member, shards),
            partial(_heard_of_limits, engine),
        ),
        load=partial(load, engine_pool, plans),
        shards=shards,
        trace=told_by(tracer) if (tracer := traces.tracer()) else None,
        treasury=Treasury(engine_pool),
        seal=at_rest.seal,
    )
    authenticator = Authenticator(api_pool)
    router = Router(engine, engine_pool, Peers(settings.token, trust=settings.trust))
    starter = Starter(api_pool, engine_pool, engine, plans, router)
    watcher = Watcher(reader, engine, router)
    executions = ExecutionServicer(
        starter=starter, reader=reader, engine=engine, router=router, watcher=watcher
    )
    control = ControlServicer(controls=Controls(reader, engine), router=router)
    explaining = ExplainServicer(reader, engine, router)
    overlaps = Overlaps(engine_pool, reader, router)
    scheduler = Scheduler(
        pool=engine_pool,
        starter=starter,
        ends=RunEnds(watcher, schedules_changed.set),
        overlaps=overlaps,
    )
    webhook_key = read_or_make(settings.webhook_key_file)
    webhooks = Webhooks(loopback=settings.webhook_loopback)
    courier = Courier(engine_pool, webhooks, webhook_key, done=events_changed.set)
    subscribing = Subscribing(api_pool, webhook_key, loopback=settings.webhook_loopback)
    lanes = await Lanes.open(settings.lane_path, wanted=settings.attach_lane)
    writer = Writer(engine)
    try:
        yield App(
            listener=listener(env, "orchestrator", "127.0.0.1:7102"),
            authenticator=authenticator,
            recorder=Recorder(engine_pool, "orchestrator"),
            servicers=[
                (add_ExecutionServiceServicer_to_server, executions),
                (
                    add_RunServiceServicer_to_server,
                    RunServicer(starter=starter, watcher=watcher),
                ),
                (
                    add_RerunServiceServicer_to_server,
                    RerunServicer(Rerunner(reader, engine, router)),
                ),
                (add_ExplainServiceServicer_to_server, explaining),
                (add_PlanServiceServicer_to_server, PlanServicer(starter, reader, engine)),
                (add_ControlServiceServicer_to_server, control),
                (add_ScheduleServiceServicer_to_server, ScheduleServicer(starter)),
                (
                    add_EventSubscriptionServiceServicer_to_server,
                    EventSubscriptionServicer(subscribing),
                ),
                (add_TriggerServiceServicer_to_server, TriggerServicer(starter)),
                (
                    add_LimitServiceServicer_to_server,
                    LimitServicer(LimitKeeper(api_pool, engine_pool, engine)),
                ),
                (
                    add_QuotaServiceServicer_to_server,
                    QuotaServicer(QuotaKeeper(api_pool, engine_pool, engine)),
                ),
            ],
            internal_listener=listener(
                env, "orchestrator", settings.attach_listen, suffix="ATTACH_LISTEN"
            ),
            internal_servicers=[
                (add_AttachServiceServicer_to_server, AttachServicer(engine, engine_pool, lanes)),
                (add_PlacementServiceServicer_to_server, PlacementServicer(engine)),
                (
                    add_PeerServiceServicer_to_server,
                    PeerServicer(
                        authenticator,
                        [executions, control, explaining],
                        watcher=watcher,
                        overlaps=overlaps,
                    ),
                ),
            ],
            loops=[
                partial(_until_fenced, writer.follow),
                partial(_until_fenced, partial(keep_lease, engine)),
                partial(_until_fenced, partial(keep_share, engine)),
                partial(judge_strays, engine, engine_pool),
                partial(tell_demand, engine),
                partial(sweep_runners, engine, engine_pool),
                partial(watch_locks, engine, engine_pool),
                partial(run_schedules, scheduler, schedules_changed),
                partial(deliver_events, courier, events_changed),
                partial(
                    _listen,
                    settings,
                    {"qflow_schedules": schedules_changed, "qflow_events": events_changed},
                ),
                partial(_until_fenced, partial(keep_limits, engine, engine_pool)),
                partial(keep_cache, engine, engine_pool),
                partial(keep_quotas, engine, engine_pool),
                *at_rest.loops,
            ],
            dependencies=[database(engine_pool)],
            figures=[
                partial(figures_of, engine),
                pools({"api": api_pool, "engine": engine_pool}),
                caches({"tokens": authenticator.asked}),
            ],
            join=writer.join,
            on_drain=writer.drain,
        )
    finally:
        lanes.close()
        await webhooks.close()
        await writer.close()
        await engine.journal.close()
        await router.peers.close()
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


def _heard(member: Member, shards: Shards, told_by: str) -> None:
    """Look at the members when another one says that something changed."""
    if told_by != str(member.id):
        shards.look.set()


def _heard_of_limits(engine: Engine, told: str) -> None:
    """Look again at what waits when another member gave places back, or at all limits."""
    member_id, limit_ids = freed_by(told)
    if member_id is None:
        engine.hear_of_limits()
    elif member_id != engine.member.id:
        for each in limit_ids:
            engine.hear_of_limits(freed=each)


async def _connect_journal(
    url: str, heard: Callable[[str], None], heard_of_limits: Callable[[str], None]
) -> asyncpg.Connection[asyncpg.Record]:
    """Open the journal's connection, which also hears what other members tell.

    Its statements find rows by key. Planned while the tables are small, they must not choose to
    read them whole, since a prepared plan stays when the tables have grown; the journal has them
    planned anew after that (`Journal._plan_anew`), for an index may be read whole, too.
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
    await db.add_listener(CHANNEL, lambda _db, _pid, _channel, told_by: heard(str(told_by)))
    await db.add_listener(
        LIMITS_CHANNEL, lambda _db, _pid, _channel, told: heard_of_limits(str(told))
    )
    heard_of_limits("")  # whatever was told before, nobody here heard it
    return db


async def _lock_home(home: Path, *, standby: bool) -> int:
    """Hold the home's lock: whoever has it knows that no other orchestrator of it is alive.

    One that stands by waits for that; any other waits for one that is about to end.
    """
    folder = home / "run"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(folder / "orchestrator.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    gives_up_at = None if standby else time.monotonic() + _LOCK_WAIT_S
    waited = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if gives_up_at is not None and time.monotonic() > gives_up_at:
                os.close(lock)
                raise EnvError(
                    f"another orchestrator runs on {home}; stop it, give this one another "
                    "QFLOW_HOME, or have it stand by with QFLOW_ORCHESTRATOR_STANDBY=1"
                ) from None
            if not waited:
                log.info("standing_by" if standby else "home_awaited", home=str(home))
            waited = True
            await asyncio.sleep(_LOCK_POLL_S)
        else:
            return lock
