"""Assembles the orchestrator service."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from services.kit import traces
from services.kit.at_rest import data_at_rest
from services.kit.home_lock import lock_home
from services.kit.lane import Lanes
from services.kit.pg import open_pool
from services.kit.rpc.identity import Authenticator
from services.kit.rpc.validate import compile_ahead
from services.kit.run import App, settle_garbage
from services.orchestrator.app.journal_connection import connect_journal
from services.orchestrator.app.parts import Base, Posting, Runs
from services.orchestrator.app.serving import app_of
from services.orchestrator.engine.engine import Engine
from services.orchestrator.engine.member import Member
from services.orchestrator.engine.shards import Shards
from services.orchestrator.engine.treasury import Treasury
from services.orchestrator.gateways.peers import Peers
from services.orchestrator.gateways.webhook_key import read_or_make
from services.orchestrator.gateways.webhooks import Webhooks
from services.orchestrator.loops.writing import Writer
from services.orchestrator.settings import Settings
from services.orchestrator.usecases.agenda import glance
from services.orchestrator.usecases.forward import Router
from services.orchestrator.usecases.overlaps import Overlaps
from services.orchestrator.usecases.plans import Plans
from services.orchestrator.usecases.read import Reader
from services.orchestrator.usecases.recover import load
from services.orchestrator.usecases.start import Starter
from services.orchestrator.usecases.trace import told_by
from services.orchestrator.usecases.watch import Watcher

log = structlog.get_logger()

_LOCK_WAIT_S: Final = 2.0
_LOCK_POLL_S: Final = 0.05  # short, since a standby should take over within half a second


@asynccontextmanager
async def build(env: Mapping[str, str]) -> AsyncIterator[App]:
    """Assemble the orchestrator; its `join` takes shards and loads their open runs."""
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
    lock = None
    try:
        await at_rest.begin(engine_pool)
        # Locked last, so that a standby has everything else done when it gets the lock.
        lock = await _lock_home(settings)
        base = Base(
            env=env,
            settings=settings,
            at_rest=at_rest,
            api_pool=api_pool,
            engine_pool=engine_pool,
            authenticator=Authenticator(api_pool),
        )
        async with _orchestrator(base) as app:
            yield app
    finally:
        await api_pool.close()
        await engine_pool.close()
        if lock is not None:
            os.close(lock)


async def _lock_home(settings: Settings) -> int:
    """Acquire the home's lock; a standby waits for it, others only briefly, for one that stops."""
    home, standby = settings.home, settings.standby
    return await lock_home(
        home / "run" / "orchestrator.lock",
        refusal=f"another orchestrator runs on {home}; stop it, give this one another "
        "QFLOW_HOME, or have it stand by with QFLOW_ORCHESTRATOR_STANDBY=1",
        wait_s=None if standby else _LOCK_WAIT_S,
        poll_s=_LOCK_POLL_S,
        on_wait=partial(_wait, home, standby=standby),
    )


def _wait(home: Path, *, standby: bool) -> None:
    if standby:  # do slow things while waiting
        compile_ahead("qflow.orchestrator.v1")
        settle_garbage()
    log.info("standing_by" if standby else "home_awaited", home=str(home))


@asynccontextmanager
async def _orchestrator(base: Base) -> AsyncIterator[App]:
    settings = base.settings
    runs = _runs(base)
    posting = Posting(
        webhooks=Webhooks(loopback=settings.webhook_loopback),
        key=read_or_make(settings.webhook_key_file),
    )
    lanes = await Lanes.open(settings.lane_path, wanted=settings.attach_lane)
    try:
        yield app_of(base, runs, posting, lanes)
    finally:
        lanes.close()
        await posting.webhooks.close()
        await runs.writer.close()
        await runs.engine.journal.close()
        await runs.router.peers.close()


def _runs(base: Base) -> Runs:
    plans = Plans()
    engine = _engine(base, plans)
    router = Router(engine, base.engine_pool, Peers(base.settings.token, trust=base.settings.trust))
    reader = Reader(base.api_pool, base.engine_pool, plans)
    return Runs(
        engine=engine,
        writer=Writer(engine),
        router=router,
        reader=reader,
        starter=Starter(base.api_pool, base.engine_pool, engine, plans, router),
        watcher=Watcher(reader, engine, router),
        overlaps=Overlaps(base.engine_pool, reader, router),
    )


def _engine(base: Base, plans: Plans) -> Engine:
    settings = base.settings
    member = Member(
        base.engine_pool,
        host=f"{socket.gethostname()}:{settings.home}",
        address=settings.attach_advertise,
        proof=True,
        ttl_s=settings.lease_ttl_s,
        glance=partial(glance, base.schedules_changed, base.events_changed),
    )
    engine = Engine(
        member=member,
        connect=lambda: connect_journal(settings.engine_database_url, engine),
        load=partial(load, base.engine_pool, plans),
        shards=Shards(),
        trace=told_by(tracer) if (tracer := traces.tracer()) else None,
        treasury=Treasury(base.engine_pool),
        seal=base.at_rest.seal,
    )
    return engine
