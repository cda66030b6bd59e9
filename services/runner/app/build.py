"""Assembles the runner."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import structlog

from services.kit import traces
from services.kit.at_rest import AtRest, data_at_rest
from services.kit.pg import Pool, open_pool
from services.kit.run import App
from services.runner.app.parts import Base, Packages, Work
from services.runner.app.serving import app_of
from services.runner.app.stores import exchanges, file_store, lock_runner, secrets_of
from services.runner.app.walls import containers_of, found_interpreters, prove, refusal
from services.runner.domain.frames import Machine
from services.runner.domain.limits import Limits
from services.runner.domain.network import Reach
from services.runner.gateways.egress import egress_for
from services.runner.gateways.sandbox.bubblewrap import BubblewrapHost, find_bubblewrap
from services.runner.gateways.sandbox.cgroups import CgroupHost
from services.runner.gateways.uv import Uv
from services.runner.gateways.uv_pythons import provide_pythons
from services.runner.gateways.wheel_store import WheelStore
from services.runner.loops.attach import Streams, greeting_of
from services.runner.settings import LEDGER, Settings
from services.runner.usecases.attempts import Attempts
from services.runner.usecases.carried import CarriedFiles
from services.runner.usecases.container_rows import ContainerRows
from services.runner.usecases.desk import Desk
from services.runner.usecases.environment_room import Room, RoomLimits
from services.runner.usecases.environments import Environments
from services.runner.usecases.inputs import StoredInputs
from services.runner.usecases.interpreters import InterpreterPool
from services.runner.usecases.loading import Loader
from services.runner.usecases.membership import Membership, Offer
from services.runner.usecases.needs import Needs
from services.runner.usecases.node_logs import NodeLogs
from services.runner.usecases.node_versions import NodeVersions
from services.runner.usecases.outputs import Outputs
from services.runner.usecases.spares import Shape, Spares
from services.runner.usecases.tenant_packages import TenantPackages
from services.runner.usecases.trace import told_by

log = structlog.get_logger()

# A spare of this version is started for the first run; later the last used one is kept.
_USUAL_PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"


@asynccontextmanager
async def build(env: Mapping[str, str]) -> AsyncIterator[App]:
    """Lock the home, test the sandbox, and assemble the service; `join` inserts its row."""
    settings = Settings.from_env(env)
    lock = await lock_runner(settings)
    api_pool = await open_pool(
        settings.database_url,
        application_name="qflow-runner",
        setting="QFLOW_RUNNER_DATABASE_URL",
        size_max=4,
    )
    at_rest = data_at_rest(env, makes=False)
    engine_pool = await open_pool(
        settings.engine_database_url,
        application_name="qflow-runner-engine",
        setting="QFLOW_RUNNER_ENGINE_DATABASE_URL",
        size_max=3,
    )
    try:
        await at_rest.begin(engine_pool)
        base = await _base(env, settings, api_pool, engine_pool, at_rest)
        async with _runner(base) as app:
            yield app
    finally:
        await api_pool.close()
        await engine_pool.close()
        os.close(lock)


async def _base(
    env: Mapping[str, str], settings: Settings, api_pool: Pool, engine_pool: Pool, at_rest: AtRest
) -> Base:
    await provide_pythons(settings.pythons_provided, folder=settings.home / "pythons", env=env)
    interpreters = await asyncio.to_thread(found_interpreters, settings.home)
    cgroups = CgroupHost.detect(settings.home / settings.name)
    host, proven = await prove(settings, interpreters, cgroups)
    if (containers := containers_of(host)) is not None:  # only Pythons that have an image
        interpreters = containers.pythons(interpreters)
    membership = Membership(
        engine_pool,
        Offer(
            host=f"{socket.gethostname()}:{settings.home}:{settings.name}",
            tier=proven.tier.value,
            slots=settings.slots,
            pythons=tuple(interpreters),
        ),
        ttl_s=settings.lease_ttl_s,
        heartbeat_s=settings.heartbeat_s,
    )
    return Base(
        env=env,
        settings=settings,
        api_pool=api_pool,
        engine_pool=engine_pool,
        at_rest=at_rest,
        cgroups=cgroups,
        host=host,
        proven=proven,
        interpreters=interpreters,
        membership=membership,
    )


@asynccontextmanager
async def _runner(base: Base) -> AsyncIterator[App]:
    packages = _packages(base)
    work = await _work(base, packages)
    try:
        yield app_of(base, packages, work, join=partial(_join, base, work))
    finally:
        await work.pool.close()
        await work.rows.flush()
        await work.logs.flush()
        if (containers := containers_of(base.host)) is not None:
            await containers.close()
        if base.cgroups is not None:
            base.cgroups.close()
        try:
            await base.membership.end(in_order=work.desk.drained)
        except Exception as problem:  # noqa: BLE001 - the lease expires anyway
            log.warning("runner_not_signed_off", fault=type(problem).__name__)


async def _join(base: Base, work: Work) -> None:
    """Join as a new incarnation, and start a spare interpreter."""
    await base.membership.begin()
    usual = base.interpreters.get(_USUAL_PYTHON) or next(reversed(base.interpreters.values()))
    work.spares.want(Shape(usual, None, Limits()))


def _packages(base: Base) -> Packages:
    settings = base.settings
    folder = settings.home / "environments"
    room = Room(
        folder,
        base.engine_pool,
        RoomLimits(
            bytes_max=settings.environments_bytes_max,
            free_bytes_min=settings.disk_free_bytes_min,
        ),
    )
    wheels = WheelStore(settings.home / "wheels")
    secrets = secrets_of(base.env, base.api_pool, base.engine_pool)
    tenants = TenantPackages(
        base.engine_pool,
        wheels,
        root=folder,
        deployment=settings.packages.rules,
        keys=secrets.keys,
        trusted=settings.packages.index_hosts,
    )
    uv = Uv(
        env=base.env,
        # Only if the canary has shown that it works.
        bubblewrap=find_bubblewrap(settings.bubblewrap)
        if isinstance(base.host, BubblewrapHost)
        else None,
        wheelhouse=settings.packages.wheelhouse,
        offline=settings.packages.offline,
        trusted=settings.packages.index_hosts,
    )
    environments = Environments(
        root=folder,
        uv=uv,
        host=base.host,
        interpreters=base.interpreters,
        pool=base.engine_pool,
        room=room,
        packages=tenants,
        incarnation=base.incarnation,
    )
    return Packages(
        folder=folder,
        room=room,
        wheels=wheels,
        secrets=secrets,
        tenants=tenants,
        environments=environments,
    )


async def _work(base: Base, packages: Packages) -> Work:
    settings = base.settings
    rows = ContainerRows(base.engine_pool, base.incarnation)
    logs = NodeLogs(base.engine_pool, caps=settings.log_caps)
    store = await asyncio.to_thread(file_store, settings, base.at_rest)
    versions = NodeVersions(base.engine_pool)
    spares = Spares(
        base.host,
        keep=settings.spares,
        binds=[(settings.test_bind, LEDGER)] if settings.test_bind else (),
        exchanges=await asyncio.to_thread(exchanges, settings),
        egress=partial(egress_for, settings.network.egress_hosts),
    )
    loader = Loader(spares=spares, rows=rows, tier=base.proven.tier)
    pool = InterpreterPool(loader=loader, sandboxes_max=settings.sandboxes_max)
    packages.environments.occupants = pool
    needs = Needs(
        versions=versions,
        environments=packages.environments,
        interpreters=base.interpreters,
        loader=loader,
        caps=settings.caps,
    )
    attempts = Attempts(
        pool=pool,
        loader=loader,
        needs=needs,
        stored=StoredInputs(store, base.engine_pool),
        logs=logs,
        carried=CarriedFiles(store, base.engine_pool),
        secrets=packages.secrets.granted,
        grace_s=settings.grace_s,
    )
    networks = settings.network.offered(base.host.networks)
    if Reach.HOST in networks:
        log.warning("network_host_allowed", setting="QFLOW_NETWORK_HOST")
    refuse = refusal(settings, base.proven.tier)
    desk = Desk(
        attempts,
        base.membership,
        slots=settings.slots,
        store=Outputs(store, base.engine_pool).save,
        pythons=base.pythons,
        networks=networks,
        refuse=refuse,
        attempt_s_max=settings.attempt_s_max or math.inf,
        trace=told_by(tracer) if (tracer := traces.tracer()) else None,
    )
    return Work(
        rows=rows,
        logs=logs,
        store=store,
        versions=versions,
        loader=loader,
        spares=spares,
        pool=pool,
        desk=desk,
        streams=_streams(base, desk, networks, refuse),
        networks=networks,
    )


def _streams(base: Base, desk: Desk, networks: Sequence[Reach], refuse: str) -> Streams:
    settings = base.settings
    greet = greeting_of(
        desk,
        base.incarnation,
        slots=settings.slots,
        tiers=() if refuse else (base.proven.tier,),
        pythons=base.pythons,
        machine=Machine(
            labels=settings.labels,
            cpus=settings.cpus,
            memory_bytes=settings.memory_bytes,
            gpus=settings.gpus,
            networks=networks,
        ),
    )
    return Streams(
        desk,
        greet,
        joined=base.membership.joined,
        token=settings.token,
        trust=settings.trust,
        on_refused=base.membership.doubt,
    )
