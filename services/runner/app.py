"""The runner put together."""

from __future__ import annotations

import asyncio
import fcntl
import math
import os
import shutil
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog
from qflow.runner.v1.environment_service_pb2_grpc import (
    add_EnvironmentServiceServicer_to_server,
)
from qflow.runner.v1.file_service_pb2_grpc import add_FileServiceServicer_to_server
from qflow.runner.v1.log_service_pb2_grpc import add_LogServiceServicer_to_server
from qflow.runner.v1.package_index_service_pb2_grpc import (
    add_PackageIndexServiceServicer_to_server,
)
from qflow.runner.v1.package_rule_service_pb2_grpc import (
    add_PackageRuleServiceServicer_to_server,
)
from qflow.runner.v1.runner_service_pb2_grpc import add_RunnerServiceServicer_to_server
from qflow.runner.v1.secret_service_pb2_grpc import add_SecretServiceServicer_to_server
from qflow.runner.v1.upload_service_pb2_grpc import add_UploadServiceServicer_to_server
from qflow.runner.v1.wheel_service_pb2_grpc import add_WheelServiceServicer_to_server

from services.kit import traces
from services.kit.at_rest import AtRest, data_at_rest
from services.kit.audit import Recorder
from services.kit.env import EnvError
from services.kit.figures import caches, pools
from services.kit.listen import listen
from services.kit.pg import Pool, open_pool
from services.kit.pythons import find_pythons
from services.kit.root_keys import LocalKeys
from services.kit.rpc.auth import Authenticator
from services.kit.rpc.health import database, disk
from services.kit.run import App, Loop, listener
from services.runner.domain.frames import Machine
from services.runner.domain.limits import Limits, ProbeCheck, Tier, meets
from services.runner.domain.network import Reach
from services.runner.domain.placing import environment_of
from services.runner.gateways.demand import watch_demand
from services.runner.gateways.egress import egress_for
from services.runner.gateways.file_port import FileBytes
from services.runner.gateways.file_store import FileStore
from services.runner.gateways.sandbox.bare import BareHost
from services.runner.gateways.sandbox.bubblewrap import BubblewrapHost, find_bubblewrap
from services.runner.gateways.sandbox.canary import Probe, probe
from services.runner.gateways.sandbox.cgroups import CgroupHost
from services.runner.gateways.sandbox.groups import ProcessGroups
from services.runner.gateways.sandbox.interpreters import prepare_interpreters
from services.runner.gateways.sandbox.landlock import LandlockHost
from services.runner.gateways.sandbox.port import Interpreter, SandboxHost
from services.runner.gateways.uv import Uv
from services.runner.gateways.uv_pythons import provide_pythons
from services.runner.gateways.wheel_store import WheelStore
from services.runner.loops.attach import Streams, greeting_of
from services.runner.loops.environments import keep_environments
from services.runner.loops.placing import leave_when_idle, place_runners
from services.runner.loops.secrets import rewrap_secrets
from services.runner.loops.upkeep import (
    keep_lease,
    reap_containers,
    shrink_pool,
    sweep_files,
    sweep_unknown,
)
from services.runner.rpc.environments import EnvironmentServicer, ShownEnvironments
from services.runner.rpc.files import FileServicer
from services.runner.rpc.logs import LogServicer
from services.runner.rpc.package_indexes import PackageIndexServicer
from services.runner.rpc.package_rules import PackageRuleServicer
from services.runner.rpc.runners import RunnerFacts, RunnerServicer
from services.runner.rpc.secrets import SecretServicer
from services.runner.rpc.uploads import UploadServicer
from services.runner.rpc.wheels import WheelServicer
from services.runner.settings import LEDGER, RaySettings, Settings
from services.runner.storage.secrets import CHANGED as SECRETS_CHANGED
from services.runner.usecases.attempts import Attempts
from services.runner.usecases.carried import CarriedFiles
from services.runner.usecases.container_rows import ContainerRows
from services.runner.usecases.desk import Desk
from services.runner.usecases.environment_room import Room, RoomLimits
from services.runner.usecases.environments import Environments
from services.runner.usecases.figures import figures_of
from services.runner.usecases.granted_secrets import GrantedSecrets
from services.runner.usecases.inputs import StoredInputs
from services.runner.usecases.interpreters import InterpreterPool
from services.runner.usecases.loading import Loader
from services.runner.usecases.membership import Membership, Offer
from services.runner.usecases.needs import Needs
from services.runner.usecases.node_logs import NodeLogs
from services.runner.usecases.node_versions import NodeVersions
from services.runner.usecases.outputs import Outputs
from services.runner.usecases.package_indexes import PackageIndexes
from services.runner.usecases.placement import Placement
from services.runner.usecases.prepare import Preparer
from services.runner.usecases.reaping import Reaper
from services.runner.usecases.secrets import Secrets
from services.runner.usecases.spares import Shape, Spares
from services.runner.usecases.tenant_packages import TenantPackages
from services.runner.usecases.trace import told_by
from services.runner.usecases.wheels import WheelLimits, Wheels

if TYPE_CHECKING:
    from services.runner.gateways.docker.host import DockerHost

log = structlog.get_logger()

_LOCK_WAIT_S: Final = 15.0
# Of this one a spare stands ready for the first run; later it is what was used last.
_USUAL_PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"


@asynccontextmanager
async def build(env: Mapping[str, str]) -> AsyncIterator[App]:
    """Prove the walls, take the home, write this incarnation's row, and serve."""
    settings = Settings.from_env(env)
    lock = await _lock_home(settings)
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
        async with _runner(env, settings, api_pool, engine_pool, at_rest) as app:
            yield app
    finally:
        await api_pool.close()
        await engine_pool.close()
        os.close(lock)


@asynccontextmanager
async def _runner(
    env: Mapping[str, str], settings: Settings, api_pool: Pool, engine_pool: Pool, at_rest: AtRest
) -> AsyncIterator[App]:
    await provide_pythons(settings.pythons_provided, folder=settings.home / "pythons", env=env)
    interpreters = await asyncio.to_thread(_interpreters, settings.home)
    cgroups = CgroupHost.detect(settings.home / settings.name)
    host, proven = await _prove(settings, interpreters, cgroups)
    if (containers := _containers(host)) is not None:  # only Pythons that have an image
        interpreters = containers.pythons(interpreters)
    pythons = tuple(interpreters)
    membership = Membership(
        engine_pool,
        Offer(
            host=f"{socket.gethostname()}:{settings.home}:{settings.name}",
            tier=proven.tier.value,
            slots=settings.slots,
            pythons=pythons,
        ),
        ttl_s=settings.lease_ttl_s,
        heartbeat_s=settings.heartbeat_s,
    )
    rows = ContainerRows(engine_pool, lambda: membership.incarnation)
    logs = NodeLogs(engine_pool, caps=settings.log_caps)
    store = await asyncio.to_thread(_file_store, settings, at_rest)
    folder = settings.home / "environments"
    room = Room(
        folder,
        engine_pool,
        RoomLimits(
            bytes_max=settings.environments_bytes_max,
            free_bytes_min=settings.disk_free_bytes_min,
        ),
    )
    wheel_store = WheelStore(settings.home / "wheels")
    versions, secrets = NodeVersions(engine_pool), _secrets(env, api_pool, engine_pool)
    packages = TenantPackages(
        engine_pool,
        wheel_store,
        root=folder,
        deployment=settings.package_rules,
        keys=secrets.keys,
        trusted=settings.package_index_hosts,
    )
    environments = Environments(
        root=folder,
        uv=Uv(
            env=env,
            # Only where it was proven to work.
            bubblewrap=find_bubblewrap(settings.bubblewrap)
            if isinstance(host, BubblewrapHost)
            else None,
            wheelhouse=settings.wheelhouse,
            offline=settings.packages_offline,
            trusted=settings.package_index_hosts,
        ),
        host=host,
        interpreters=interpreters,
        pool=engine_pool,
        room=room,
        packages=packages,
        incarnation=lambda: membership.incarnation,
    )
    spares = Spares(
        host,
        keep=settings.spares,
        binds=[(settings.test_bind, LEDGER)] if settings.test_bind else (),
        exchanges=await asyncio.to_thread(_exchanges, settings),
        egress=partial(egress_for, settings.network.egress_hosts),
    )
    loader = Loader(spares=spares, rows=rows, tier=proven.tier)
    pool = environments.occupants = InterpreterPool(
        loader=loader, sandboxes_max=settings.sandboxes_max
    )
    attempts = Attempts(
        pool=pool,
        loader=loader,
        needs=Needs(
            versions=versions,
            environments=environments,
            interpreters=interpreters,
            loader=loader,
            caps=settings.caps,
        ),
        stored=StoredInputs(store, engine_pool),
        logs=logs,
        carried=CarriedFiles(store, engine_pool),
        secrets=secrets.granted,
        grace_s=settings.grace_s,
    )
    refusal = _refusal(settings, proven.tier)
    networks = settings.network.offered(host.networks)
    if Reach.HOST in networks:
        log.warning("network_host_allowed", setting="QFLOW_NETWORK_HOST")
    desk = Desk(
        attempts,
        membership,
        slots=settings.slots,
        store=Outputs(store, engine_pool).save,
        pythons=pythons,
        networks=networks,
        refuse=refusal,
        attempt_s_max=settings.attempt_s_max or math.inf,
        trace=told_by(tracer) if (tracer := traces.tracer()) else None,
    )
    greet = greeting_of(
        desk,
        lambda: membership.incarnation,
        slots=settings.slots,
        tiers=() if refusal else (proven.tier,),
        pythons=pythons,
        machine=Machine(
            labels=settings.labels,
            cpus=settings.cpus,
            memory_bytes=settings.memory_bytes,
            gpus=settings.gpus,
            networks=networks,
        ),
    )
    streams = Streams(
        desk,
        greet,
        joined=membership.joined,
        token=settings.token,
        trust=settings.trust,
        on_refused=membership.doubt,
    )
    authenticator = Authenticator(api_pool)
    await membership.begin()
    usual = interpreters.get(_USUAL_PYTHON) or next(reversed(interpreters.values()))
    spares.want(Shape(usual, None, Limits()))
    facts = RunnerFacts(
        tier=proven.tier,
        checks=proven.checks,
        slots=settings.slots,
        pythons=pythons,
        networks=networks,
        egress_hosts=settings.network.egress_hosts,
    )
    shown = ShownEnvironments(
        api_pool,
        environments,
        Preparer(api_pool, versions=versions, environments=environments, sandboxes=loader),
        pythons={version: each.full_version for version, each in find_pythons().items()},
    )
    for_services = (add_EnvironmentServiceServicer_to_server, EnvironmentServicer(shown))
    try:
        yield App(
            listener=listener(env, "runner", "127.0.0.1:7103"),
            authenticator=authenticator,
            recorder=Recorder(engine_pool, "runner"),
            internal_listener=None
            if settings.internal_listen is None
            else listener(env, "runner", settings.internal_listen, suffix="INTERNAL_LISTEN"),
            internal_servicers=[for_services],
            servicers=[
                for_services,
                (
                    add_RunnerServiceServicer_to_server,
                    RunnerServicer(api_pool, facts, lambda: membership.incarnation),
                ),
                (add_FileServiceServicer_to_server, FileServicer(api_pool, store)),
                (add_UploadServiceServicer_to_server, UploadServicer(api_pool, store)),
                (add_LogServiceServicer_to_server, LogServicer(api_pool, logs)),
                (
                    add_WheelServiceServicer_to_server,
                    WheelServicer(_wheels(settings, api_pool, wheel_store)),
                ),
                (add_PackageRuleServiceServicer_to_server, PackageRuleServicer(api_pool)),
                (add_SecretServiceServicer_to_server, SecretServicer(secrets)),
                (
                    add_PackageIndexServiceServicer_to_server,
                    PackageIndexServicer(PackageIndexes(api_pool, settings.package_index_hosts)),
                ),
            ],
            dependencies=[database(engine_pool), disk(settings.home)],
            figures=[
                partial(figures_of, desk, pool, environments, slots=settings.slots),
                pools({"api": api_pool, "engine": engine_pool}),
                caches({"tokens": authenticator.asked}),
            ],
            loops=[
                *_working(settings, streams, desk, pythons),
                partial(keep_lease, membership, desk, pool, streams),
                partial(shrink_pool, pool),
                partial(sweep_files, engine_pool, store),
                partial(
                    keep_environments, folder, environments, room, packages, pool.environment_keys
                ),
                partial(sweep_unknown, engine_pool, store),
                partial(rewrap_secrets, secrets.granted),
                *at_rest.loops,
                partial(
                    listen,
                    settings.engine_database_url,
                    {SECRETS_CHANGED: secrets.granted.changed},
                    application_name="qflow-runner-listener",
                ),
                rows.write_until,
                logs.write_until,
                partial(
                    reap_containers,
                    Reaper(
                        host,
                        engine_pool,
                        incarnation=lambda: membership.incarnation,
                        kept=lambda: rows.open,
                    ),
                ),
            ],
        )
    finally:
        await pool.close()
        await rows.flush()
        await logs.flush()
        if containers is not None:
            await containers.close()
        if cgroups is not None:
            cgroups.close()
        try:
            await membership.end(in_order=desk.drained)
        except Exception as problem:  # noqa: BLE001 - the lease lapses by itself
            log.warning("runner_not_signed_off", fault=type(problem).__name__)


def _secrets(env: Mapping[str, str], api_pool: Pool, engine_pool: Pool) -> Secrets:
    keys = LocalKeys.from_env(env)
    return Secrets(api_pool, keys, GrantedSecrets(engine_pool, keys))


def _working(
    settings: Settings, streams: Streams, desk: Desk, pythons: Sequence[str]
) -> list[Loop]:
    """Give what this process does about nodes: runs them, or has runners started that do."""
    if settings.ray is None:
        return [
            partial(streams.hold_all, settings.attach_addresses),
            streams.drain,
            partial(leave_when_idle, desk.activity, settings.idle_exit_s),
        ]
    return [partial(_place, settings, settings.ray, pythons)]


async def _place(
    settings: Settings, ray: RaySettings, pythons: Sequence[str], stop: asyncio.Event
) -> None:
    # Where it is not used, nobody waits for it to be imported.
    from services.runner.gateways.ray.cluster import RayCluster

    changed = asyncio.Event()
    cluster = await RayCluster.open(ray.address, on_change=changed.set)
    try:
        others = await cluster.others()
        if others and not settings.files_bucket:
            raise EnvError(
                f"QFLOW_FILES_S3_BUCKET is not set, and the cluster has {', '.join(others)} besides"
                " this machine: runners of several machines share no files without it"
            )
        placement = Placement(
            cluster,
            plain=ray.plain,
            runners_max=ray.runners_max,
            changed=changed,
            settings_of=partial(
                environment_of,
                caps=settings.caps,
                idle_s=ray.idle_exit_s,
                addresses=settings.attach_addresses,
            ),
        )
        watch = partial(
            watch_demand,
            token=settings.token,
            trust=settings.trust,
            pythons=pythons,
            machines_come=ray.machines_come,
        )
        log.info("placing_with_ray", machines=len(await cluster.machines()))
        await place_runners(placement, cluster, watch, settings.attach_addresses, stop)
    finally:
        await cluster.close()


def _interpreters(home: Path) -> dict[str, Interpreter]:
    found = prepare_interpreters(find_pythons().values(), home / "run" / "agent")
    if not found:
        raise EnvError("no Python from 3.9 to 3.14 can run the agent on this machine")
    return found


async def _prove(
    settings: Settings, interpreters: Mapping[str, Interpreter], cgroups: CgroupHost | None
) -> tuple[SandboxHost, Probe]:
    """Choose the strongest host and let the canary attack it."""
    began = time.monotonic()
    groups = ProcessGroups(settings.home / "run" / f"{settings.name}.sandboxes")
    left = await asyncio.to_thread(groups.reap)
    if cgroups is not None:
        left += await asyncio.to_thread(cgroups.reap)
    if left:
        log.warning("sandboxes_reaped", groups=left)
    if settings.unsafe:
        log.error("sandbox_disabled", setting="QFLOW_UNSAFE_NO_SANDBOX")
        none = ProbeCheck("sandbox", held=False, detail="none: the unsafe switch is set")
        return BareHost(cgroups=cgroups), Probe(Tier.T0, [none])
    docker, missing = await _docker(settings, interpreters)
    hosts: list[SandboxHost] = []
    if docker is not None:
        hosts.append(docker)
        interpreters = docker.pythons(interpreters)
    newest = interpreters[max(interpreters, key=lambda version: int(version.split(".")[1]))]
    bubblewrap = find_bubblewrap(settings.bubblewrap)
    if bubblewrap is not None:
        hosts.append(BubblewrapHost(bubblewrap, cgroups=cgroups))
    boxes = settings.home / "sandboxes" / settings.name
    await asyncio.to_thread(shutil.rmtree, boxes, ignore_errors=True)  # of those who are reaped
    hosts.append(LandlockHost(boxes, cgroups=cgroups, groups=groups))
    for host in hosts:
        proven = await probe(host, newest)
        log.info(
            "sandbox_probed",
            sandbox=type(host).__name__,
            tier=proven.tier.value,
            took_ms=round((time.monotonic() - began) * 1000),
            open=proven.open,
        )
        if proven.tier is not Tier.T0:
            break
    if docker is not None and host is not docker:
        await docker.close()
    if not meets(proven.tier, Tier.T2):
        log.warning("sandbox_weak", tier=proven.tier.value, wants="namespaces and control groups")
    return host, Probe(proven.tier, [*missing, *proven.checks])


async def _docker(
    settings: Settings, interpreters: Mapping[str, Interpreter]
) -> tuple[DockerHost | None, list[ProbeCheck]]:
    """Open the daemon where containers are asked for; what it lacks is told like an attack."""
    if not meets(settings.minimum_tier, Tier.T3):
        return None, []
    # Where no containers are asked for, nobody waits for it to be imported.
    from services.runner.gateways.docker.host import DockerHost, DockerMissing, DockerSettings

    wanted = DockerSettings(
        image=settings.docker_image, runtime=settings.docker_runtime, cpus=settings.docker_cpus
    )
    try:
        return await DockerHost.open(wanted, interpreters, settings.home / settings.name), []
    except DockerMissing as problem:
        log.warning("docker_missing", fault=str(problem))
        return None, [ProbeCheck("docker", held=False, detail=str(problem))]


def _containers(host: SandboxHost) -> DockerHost | None:
    if not meets(host.tier, Tier.T3):
        return None
    from services.runner.gateways.docker.host import DockerHost  # late, as above

    return host if isinstance(host, DockerHost) else None


def _file_store(settings: Settings, at_rest: AtRest) -> FileBytes:
    if not settings.files_bucket:
        folder = settings.home / "files"
        if at_rest.keys is None:
            return FileStore(folder)
        from services.runner.gateways.sealed_files import SealedFileStore  # late, as below

        return SealedFileStore(folder, at_rest.keys, seals=at_rest.seals)
    if at_rest.seals:
        log.warning("files_left_to_the_bucket", bucket=settings.files_bucket)
    # Where it is not used, nobody waits for it to be imported.
    from services.runner.gateways.object_store import ObjectStore

    return ObjectStore(
        settings.files_bucket, endpoint=settings.files_endpoint, region=settings.files_region
    )


def _exchanges(settings: Settings) -> Path:
    """Give the folder of what is handed to sandboxes, without what a killed runner left there."""
    folder = settings.home / "exchange" / settings.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o711, parents=True)
    return folder


def _wheels(settings: Settings, pool: Pool, store: WheelStore) -> Wheels:
    limits = WheelLimits(
        bytes_max=settings.wheel_bytes_max, tenant_bytes_max=settings.tenant_wheels_bytes_max
    )
    return Wheels(pool, store, limits)


def _refusal(settings: Settings, tier: Tier) -> str:
    """Say why nothing is taken: walls weaker than asked for, and no switch that allows it."""
    if settings.unsafe or (meets(tier, settings.minimum_tier) and tier is not Tier.T0):
        return ""
    log.error("tier_below_minimum", tier=tier.value, minimum=settings.minimum_tier.value)
    return "tier_missing"


async def _lock_home(settings: Settings) -> int:
    """Hold the home's lock: whoever has it knows that no earlier runner of it is alive."""
    folder = settings.home / "run"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{settings.name}.lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(lock)
                raise EnvError(
                    f"another runner holds {path}; stop it, or set QFLOW_RUNNER_NAME"
                ) from None
            await asyncio.sleep(0.1)
        else:
            return lock
