"""The runner's services and loops."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

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

from services.kit.audit import Recorder
from services.kit.figures import caches, pools
from services.kit.listen import listen
from services.kit.pythons import find_pythons
from services.kit.rpc.health import database, disk
from services.kit.rpc.identity import Authenticator
from services.kit.rpc.server import Servicer
from services.kit.run import App, Loop, listener
from services.runner.app.parts import Base, Packages, Work
from services.runner.app.stores import wheels_of
from services.runner.app.working import working
from services.runner.loops.environments import keep_environments
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
from services.runner.storage.secrets import CHANGED as SECRETS_CHANGED
from services.runner.usecases.figures import figures_of
from services.runner.usecases.package_indexes import PackageIndexes
from services.runner.usecases.prepare import Preparer
from services.runner.usecases.reaping import Reaper


def app_of(
    base: Base, packages: Packages, work: Work, *, join: Callable[[], Awaitable[None]]
) -> App:
    """Return the service made of these parts."""
    settings, authenticator = base.settings, Authenticator(base.api_pool)
    shown = ShownEnvironments(
        base.api_pool,
        packages.environments,
        Preparer(
            base.api_pool,
            versions=work.versions,
            environments=packages.environments,
            sandboxes=work.loader,
        ),
        pythons={version: each.full_version for version, each in find_pythons().items()},
    )
    for_services = (add_EnvironmentServiceServicer_to_server, EnvironmentServicer(shown))
    return App(
        listener=listener(base.env, "runner", "127.0.0.1:7103"),
        authenticator=authenticator,
        recorder=Recorder(base.engine_pool, "runner"),
        internal_listener=None
        if settings.internal_listen is None
        else listener(base.env, "runner", settings.internal_listen, suffix="INTERNAL_LISTEN"),
        internal_servicers=[for_services],
        servicers=[for_services, *_servicers(base, packages, work)],
        dependencies=[database(base.engine_pool), disk(settings.home)],
        figures=[
            partial(figures_of, work.desk, work.pool, packages.environments, slots=settings.slots),
            pools({"api": base.api_pool, "engine": base.engine_pool}),
            caches({"tokens": authenticator.asked}),
        ],
        loops=_loops(base, packages, work),
        join=join,
    )


def _servicers(base: Base, packages: Packages, work: Work) -> list[Servicer]:
    settings, pool = base.settings, base.api_pool
    facts = RunnerFacts(
        tier=base.proven.tier,
        checks=base.proven.checks,
        slots=settings.slots,
        pythons=base.pythons,
        networks=work.networks,
        egress_hosts=settings.network.egress_hosts,
    )
    wheels = wheels_of(settings, pool, packages.wheels)
    indexes = PackageIndexes(pool, settings.packages.index_hosts)
    return [
        (add_RunnerServiceServicer_to_server, RunnerServicer(pool, facts, base.incarnation)),
        (add_FileServiceServicer_to_server, FileServicer(pool, work.store)),
        (add_UploadServiceServicer_to_server, UploadServicer(pool, work.store)),
        (add_LogServiceServicer_to_server, LogServicer(pool, work.logs)),
        (add_WheelServiceServicer_to_server, WheelServicer(wheels)),
        (add_PackageRuleServiceServicer_to_server, PackageRuleServicer(pool)),
        (add_SecretServiceServicer_to_server, SecretServicer(packages.secrets)),
        (add_PackageIndexServiceServicer_to_server, PackageIndexServicer(indexes)),
    ]


def _loops(base: Base, packages: Packages, work: Work) -> list[Loop]:
    granted = packages.secrets.granted
    reaper = Reaper(
        base.host, base.engine_pool, incarnation=base.incarnation, kept=lambda: work.rows.open
    )
    return [
        *working(base.settings, work.streams, work.desk, base.pythons),
        partial(keep_lease, base.membership, work.desk, work.pool, work.streams),
        partial(shrink_pool, work.pool),
        partial(sweep_files, base.engine_pool, work.store),
        partial(
            keep_environments,
            packages.folder,
            packages.environments,
            packages.room,
            packages.tenants,
            work.pool.environment_keys,
        ),
        partial(sweep_unknown, base.engine_pool, work.store),
        partial(rewrap_secrets, granted),
        *base.at_rest.loops,
        partial(
            listen,
            base.settings.engine_database_url,
            {SECRETS_CHANGED: granted.changed},
            application_name="qflow-runner-listener",
        ),
        work.rows.write_until,
        work.logs.write_until,
        partial(reap_containers, reaper),
    ]
