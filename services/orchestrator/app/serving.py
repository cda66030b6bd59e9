"""The servicers and loops of an orchestrator."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

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

from services.kit.audit import Recorder
from services.kit.figures import caches, pools
from services.kit.lane import Lanes
from services.kit.listen import listen
from services.kit.rpc.health import database
from services.kit.rpc.server import Servicer
from services.kit.run import App, Loop, listener
from services.orchestrator.app.parts import Base, Posting, Runs
from services.orchestrator.engine.journal import FencedError
from services.orchestrator.loops.events import deliver_events
from services.orchestrator.loops.lease import keep_lease
from services.orchestrator.loops.limits import keep_limits
from services.orchestrator.loops.members import judge_strays, keep_share, tell_demand
from services.orchestrator.loops.quotas import keep_quotas
from services.orchestrator.loops.result_cache import keep_cache
from services.orchestrator.loops.schedules import run_schedules
from services.orchestrator.loops.sweep import sweep_runners, watch_locks
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
from services.orchestrator.usecases.controls import Controls
from services.orchestrator.usecases.event_courier import Courier
from services.orchestrator.usecases.event_subscriptions import Subscribing
from services.orchestrator.usecases.figures import figures_of
from services.orchestrator.usecases.limits import LimitKeeper
from services.orchestrator.usecases.quotas import QuotaKeeper
from services.orchestrator.usecases.rerun import Rerunner
from services.orchestrator.usecases.schedule_ends import RunEnds
from services.orchestrator.usecases.schedule_runs import Scheduler

log = structlog.get_logger()

# Servicers whose calls other orchestrators forward to the owner of the run.
Forwarded = tuple[ExecutionServicer, ControlServicer, ExplainServicer]


def app_of(base: Base, runs: Runs, posting: Posting, lanes: Lanes) -> App:
    """Return the service made of these parts."""
    forwarded = (
        ExecutionServicer(
            starter=runs.starter,
            reader=runs.reader,
            engine=runs.engine,
            router=runs.router,
            watcher=runs.watcher,
        ),
        ControlServicer(controls=Controls(runs.reader, runs.engine), router=runs.router),
        ExplainServicer(runs.reader, runs.engine, runs.router),
    )
    return App(
        listener=listener(base.env, "orchestrator", "127.0.0.1:7102"),
        authenticator=base.authenticator,
        recorder=Recorder(base.engine_pool, "orchestrator"),
        servicers=_servicers(base, runs, posting, forwarded),
        internal_listener=listener(
            base.env, "orchestrator", base.settings.attach_listen, suffix="ATTACH_LISTEN"
        ),
        internal_servicers=_internal_servicers(base, runs, lanes, forwarded),
        loops=_loops(base, runs, posting),
        dependencies=[database(base.engine_pool)],
        figures=[
            partial(figures_of, runs.engine),
            pools({"api": base.api_pool, "engine": base.engine_pool}),
            caches({"tokens": base.authenticator.asked}),
        ],
        join=runs.writer.join,
        on_drain=runs.writer.drain,
    )


def _servicers(base: Base, runs: Runs, posting: Posting, forwarded: Forwarded) -> list[Servicer]:
    execution, control, explain = forwarded
    engine, pools = runs.engine, (base.api_pool, base.engine_pool)
    subscribing = Subscribing(base.api_pool, posting.key, loopback=base.settings.webhook_loopback)
    return [
        (add_ExecutionServiceServicer_to_server, execution),
        (
            add_RunServiceServicer_to_server,
            RunServicer(starter=runs.starter, watcher=runs.watcher),
        ),
        (
            add_RerunServiceServicer_to_server,
            RerunServicer(Rerunner(runs.reader, engine, runs.router)),
        ),
        (add_ExplainServiceServicer_to_server, explain),
        (add_PlanServiceServicer_to_server, PlanServicer(runs.starter, runs.reader, engine)),
        (add_ControlServiceServicer_to_server, control),
        (add_ScheduleServiceServicer_to_server, ScheduleServicer(runs.starter)),
        (
            add_EventSubscriptionServiceServicer_to_server,
            EventSubscriptionServicer(subscribing),
        ),
        (add_TriggerServiceServicer_to_server, TriggerServicer(runs.starter)),
        (add_LimitServiceServicer_to_server, LimitServicer(LimitKeeper(*pools, engine))),
        (add_QuotaServiceServicer_to_server, QuotaServicer(QuotaKeeper(*pools, engine))),
    ]


def _internal_servicers(
    base: Base, runs: Runs, lanes: Lanes, forwarded: Forwarded
) -> list[Servicer]:
    """Return the servicers for runners and other orchestrators."""
    attach = AttachServicer(runs.engine, base.engine_pool, lanes)
    peer = PeerServicer(
        base.authenticator, list(forwarded), watcher=runs.watcher, overlaps=runs.overlaps
    )
    return [
        (add_AttachServiceServicer_to_server, attach),
        (add_PlacementServiceServicer_to_server, PlacementServicer(runs.engine)),
        (add_PeerServiceServicer_to_server, peer),
    ]


def _loops(base: Base, runs: Runs, posting: Posting) -> list[Loop]:
    engine, pool = runs.engine, base.engine_pool
    scheduler = Scheduler(
        pool=pool,
        starter=runs.starter,
        ends=RunEnds(runs.watcher, base.schedules_changed.set),
        overlaps=runs.overlaps,
    )
    courier = Courier(pool, posting.webhooks, posting.key, done=base.events_changed.set)
    return [
        *_until_fenced(
            runs.writer.follow,
            partial(keep_lease, engine),
            partial(keep_share, engine),
            partial(keep_limits, engine, pool),
        ),
        partial(judge_strays, engine, pool),
        partial(tell_demand, engine),
        partial(sweep_runners, engine, pool),
        partial(watch_locks, engine, pool),
        partial(run_schedules, scheduler, base.schedules_changed),
        partial(deliver_events, courier, base.events_changed),
        partial(
            listen,
            base.settings.engine_database_url,
            {"qflow_schedules": base.schedules_changed, "qflow_events": base.events_changed},
            application_name="qflow-listener",
        ),
        partial(keep_cache, engine, pool),
        partial(keep_quotas, engine, pool),
        *base.at_rest.loops,
    ]


def _until_fenced(*loops: Loop) -> Sequence[Loop]:
    """Stop the process cleanly when another member has taken over, which is not a failure."""

    async def until_fenced(loop: Loop, stop: asyncio.Event) -> None:
        try:
            await loop(stop)
        except FencedError:
            log.warning("member_fenced")
            stop.set()

    return [partial(until_fenced, each) for each in loops]
