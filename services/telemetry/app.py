"""The composition of the telemetry service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial

from qflow.telemetry.v1.analytics_service_pb2_grpc import add_AnalyticsServiceServicer_to_server
from qflow.telemetry.v1.backup_service_pb2_grpc import add_BackupServiceServicer_to_server
from qflow.telemetry.v1.doctor_service_pb2_grpc import add_DoctorServiceServicer_to_server
from qflow.telemetry.v1.metric_service_pb2_grpc import add_MetricServiceServicer_to_server
from qflow.telemetry.v1.retention_service_pb2_grpc import add_RetentionServiceServicer_to_server
from qflow.telemetry.v1.tail_service_pb2_grpc import add_TailServiceServicer_to_server
from qflow.telemetry.v1.telemetry_service_pb2_grpc import add_TelemetryServiceServicer_to_server

from services.kit.audit import Recorder
from services.kit.figures import caches, pools
from services.kit.listen import listen
from services.kit.pg import Pool, open_pool
from services.kit.rpc.health import database, disk
from services.kit.rpc.identity import Authenticator
from services.kit.run import App, Loop
from services.telemetry.gateways.backup_program import BackupProgram
from services.telemetry.gateways.machine import Machine
from services.telemetry.loops.backups import archive_wal, take_backups
from services.telemetry.loops.health import sample_health
from services.telemetry.loops.metrics import follow_finished
from services.telemetry.loops.retention import forget_expired
from services.telemetry.rpc.analytics import AnalyticsServicer
from services.telemetry.rpc.backups import BackupServicer
from services.telemetry.rpc.doctor import DoctorServicer
from services.telemetry.rpc.metrics import MetricServicer
from services.telemetry.rpc.retention import RetentionServicer
from services.telemetry.rpc.servicer import TelemetryServicer
from services.telemetry.rpc.tails import TailServicer
from services.telemetry.settings import Settings
from services.telemetry.usecases.backups import Backups
from services.telemetry.usecases.condition import Condition
from services.telemetry.usecases.doctor import Doctor
from services.telemetry.usecases.figures import Work
from services.telemetry.usecases.retention import Retention

# Retention deletes in batches that may take longer than any call.
_MAINT_STATEMENT_TIMEOUT_S = 60.0
# A query of the doctor may scan a whole table.
_DOCTOR_STATEMENT_TIMEOUT_S = 60.0

# Orchestrators notify this channel when they start to work and when they stop.
_MEMBERS_CHANNEL = "qflow_members"


@asynccontextmanager
async def build(env: Mapping[str, str]) -> AsyncIterator[App]:
    """Build telemetry: calls see what their caller may see, loops see all tenants."""
    settings = Settings.from_env(env)
    pool = await open_pool(
        settings.database_url,
        application_name="qflow-telemetry",
        setting="QFLOW_TELEMETRY_DATABASE_URL",
        size_max=settings.pool_size_max,
    )
    maint = await open_pool(
        settings.maint_database_url,
        application_name="qflow-telemetry-maint",
        setting="QFLOW_TELEMETRY_MAINT_DATABASE_URL",
        size_max=3,
        statement_timeout_s=_MAINT_STATEMENT_TIMEOUT_S,
    )
    doctor = await open_pool(
        settings.doctor_database_url,
        application_name="qflow-telemetry-doctor",
        setting="QFLOW_TELEMETRY_DOCTOR_DATABASE_URL",
        size_min=0,
        size_max=1,
        statement_timeout_s=_DOCTOR_STATEMENT_TIMEOUT_S,
    )
    authenticator, work, condition = Authenticator(pool), Work(), Condition()
    retention = Retention(pool, maint, settings.keep, work)
    backups = Backups(pool, BackupProgram(env), settings.backups)
    async with pool, maint, doctor:
        yield App(
            listener=settings.listener,
            authenticator=authenticator,
            recorder=Recorder(pool, "telemetry"),
            servicers=[
                (add_TelemetryServiceServicer_to_server, TelemetryServicer(pool)),
                (add_AnalyticsServiceServicer_to_server, AnalyticsServicer(pool)),
                (add_DoctorServiceServicer_to_server, DoctorServicer(Doctor(doctor))),
                (add_BackupServiceServicer_to_server, BackupServicer(backups)),
                (add_MetricServiceServicer_to_server, MetricServicer(pool)),
                (add_RetentionServiceServicer_to_server, RetentionServicer(retention)),
                (add_TailServiceServicer_to_server, TailServicer(pool)),
            ],
            dependencies=[database(pool), disk(settings.home)],
            figures=[
                work.figures,
                condition.figures,
                backups.figures,
                pools({"api": pool, "maint": maint, "doctor": doctor}),
                caches({"tokens": authenticator.asked}),
            ],
            loops=_loops(settings, maint, work, condition, retention, backups),
        )


def _loops(
    settings: Settings,
    maint: Pool,
    work: Work,
    condition: Condition,
    retention: Retention,
    backups: Backups,
) -> list[Loop]:
    stirred = asyncio.Event()
    loops: list[Loop] = [
        partial(
            listen,
            settings.maint_database_url,
            {_MEMBERS_CHANNEL: stirred},
            application_name="qflow-telemetry-listener",
        ),
        partial(
            sample_health,
            maint,
            Machine(settings.home),
            condition,
            interval_s=settings.health_interval_s,
        ),
        partial(forget_expired, retention, interval_s=settings.retention_interval_s, work=work),
    ]
    if settings.measures_executions:
        loops.append(
            partial(follow_finished, maint, work, stirred, with_nodes=settings.measures_nodes)
        )
    if settings.backups.is_enabled:
        loops += [partial(take_backups, backups), partial(archive_wal, backups)]
    return loops
