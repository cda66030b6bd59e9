"""The composition of the registry service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from qflow.registry.v1.audit_service_pb2_grpc import add_AuditServiceServicer_to_server
from qflow.registry.v1.builtin_node_service_pb2_grpc import add_BuiltinNodeServiceServicer_to_server
from qflow.registry.v1.diff_service_pb2_grpc import add_DiffServiceServicer_to_server
from qflow.registry.v1.exchange_service_pb2_grpc import add_ExchangeServiceServicer_to_server
from qflow.registry.v1.node_service_pb2_grpc import add_NodeServiceServicer_to_server
from qflow.registry.v1.service_token_service_pb2_grpc import (
    add_ServiceTokenServiceServicer_to_server,
)
from qflow.registry.v1.session_service_pb2_grpc import add_SessionServiceServicer_to_server
from qflow.registry.v1.settings_service_pb2_grpc import add_SettingsServiceServicer_to_server
from qflow.registry.v1.tag_service_pb2_grpc import add_TagServiceServicer_to_server
from qflow.registry.v1.team_service_pb2_grpc import add_TeamServiceServicer_to_server
from qflow.registry.v1.template_service_pb2_grpc import add_TemplateServiceServicer_to_server
from qflow.registry.v1.type_service_pb2_grpc import add_TypeServiceServicer_to_server
from qflow.registry.v1.user_service_pb2_grpc import add_UserServiceServicer_to_server
from qflow.registry.v1.variable_service_pb2_grpc import add_VariableServiceServicer_to_server
from qflow.registry.v1.workflow_alias_service_pb2_grpc import (
    add_WorkflowAliasServiceServicer_to_server,
)
from qflow.registry.v1.workflow_service_pb2_grpc import add_WorkflowServiceServicer_to_server

from services.kit.audit import Recorder
from services.kit.cache import Cache
from services.kit.figures import caches, pools
from services.kit.pg import Pool, open_pool
from services.kit.rpc.channel import open_channel
from services.kit.rpc.health import Dependency, database
from services.kit.rpc.identity import Authenticator
from services.kit.rpc.server import Servicer
from services.kit.run import App, listener, run_service
from services.registry.gateways.definition_cache import DefinitionCache
from services.registry.gateways.documents import Documents
from services.registry.gateways.environments import RunnerEnvironments
from services.registry.gateways.graph_checker import GraphChecker
from services.registry.gateways.passwords import Passwords
from services.registry.gateways.source_analyzer.child import SourceAnalyzer
from services.registry.loops.locks import make_locks
from services.registry.rpc.audit import AuditServicer
from services.registry.rpc.builtin_nodes import BuiltinNodeServicer
from services.registry.rpc.diffs import DiffServicer
from services.registry.rpc.exchange import ExchangeServicer
from services.registry.rpc.fresh import Answers, forgetting, recent_answers
from services.registry.rpc.nodes import NodeServicer
from services.registry.rpc.service_tokens import ServiceTokenServicer
from services.registry.rpc.sessions import SessionServicer
from services.registry.rpc.settings import SettingsServicer
from services.registry.rpc.tags import TagServicer
from services.registry.rpc.teams import TeamServicer
from services.registry.rpc.templates import TemplateServicer
from services.registry.rpc.types import TypeServicer
from services.registry.rpc.users import UserServicer
from services.registry.rpc.variables import VariableServicer
from services.registry.rpc.workflow_aliases import WorkflowAliasServicer
from services.registry.rpc.workflows import WorkflowServicer
from services.registry.settings import Settings
from services.registry.usecases.custom_types import Types
from services.registry.usecases.exchange import Exchange
from services.registry.usecases.identity import Identity
from services.registry.usecases.locks import Locks
from services.registry.usecases.nodes import Nodes
from services.registry.usecases.reading import Reading
from services.registry.usecases.workflows import Workflows


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the registry's servicers are built from."""

    pool: Pool
    auth_pool: Pool
    nodes: Nodes
    workflows: Workflows
    types: Types
    identity: Identity
    reading: Reading
    checker: GraphChecker


@asynccontextmanager
async def build(env: Mapping[str, str]) -> AsyncIterator[App]:
    """Open the registry's resources, and close them afterwards."""
    settings = Settings.from_env(env)
    async with AsyncExitStack() as stack:
        pool = await _pool(stack, settings.database_url, "qflow-registry", settings.pool_size_max)
        auth_pool = await _pool(stack, settings.auth_database_url, "qflow-registry-auth", 2)
        engine_pool = await _pool(stack, settings.engine_database_url, "qflow-registry-engine", 4)
        locks = Locks(engine_pool, _environments(stack, settings))
        authenticator, answers = Authenticator(pool), recent_answers()
        redis = _redis(stack, settings)
        cache = None if redis is None else DefinitionCache(redis, settings.service_token)
        analyzer, checker = SourceAnalyzer(), GraphChecker()
        python_version = settings.python_version
        parts = Parts(
            pool=pool,
            auth_pool=auth_pool,
            nodes=Nodes(
                pool=pool,
                analyzer=analyzer,
                locks=locks,
                python_version=python_version,
                search=engine_pool,
            ),
            workflows=Workflows(
                pool=pool,
                checker=checker,
                python_version=python_version,
                search=engine_pool,
                caps=settings.caps,
            ),
            types=Types(pool=pool, analyzer=analyzer, python_version=python_version),
            identity=Identity(
                auth_pool=auth_pool,
                passwords=Passwords(),
                session_lifetime=settings.session_lifetime,
                forget=authenticator.forget,
                forget_member=authenticator.forget_member,
            ),
            reading=Reading(pool, cache),
            checker=checker,
        )
        asked = {"tokens": authenticator.asked, "answers": answers.asked}
        dependencies = [database(pool)]
        if redis is not None:
            asked["definitions"] = redis.asked
            dependencies.append(Dependency("redis", redis.answers, essential=False))
        yield App(
            listener=listener(env, "registry", settings.listen_default),
            authenticator=authenticator,
            recorder=Recorder(engine_pool, "registry"),
            servicers=[forgetting(each, answers) for each in _servicers(parts, answers)],
            loops=[partial(make_locks, locks)],
            dependencies=dependencies,
            figures=[
                pools({"api": pool, "auth": auth_pool, "engine": engine_pool}),
                caches(asked),
            ],
        )


def _servicers(parts: Parts, answers: Answers) -> list[Servicer]:
    pool, nodes, workflows, identity = parts.pool, parts.nodes, parts.workflows, parts.identity
    reading = parts.reading
    exchange = Exchange(nodes=nodes, workflows=workflows, documents=Documents())
    return [
        (add_SessionServiceServicer_to_server, SessionServicer(identity)),
        (add_BuiltinNodeServiceServicer_to_server, BuiltinNodeServicer()),
        (
            add_NodeServiceServicer_to_server,
            NodeServicer(nodes, reading, answers, parts.checker),
        ),
        (add_WorkflowServiceServicer_to_server, WorkflowServicer(workflows, reading, answers)),
        (add_ExchangeServiceServicer_to_server, ExchangeServicer(exchange)),
        (add_DiffServiceServicer_to_server, DiffServicer(exchange)),
        (add_TypeServiceServicer_to_server, TypeServicer(parts.types)),
        (add_TagServiceServicer_to_server, TagServicer(pool)),
        (add_WorkflowAliasServiceServicer_to_server, WorkflowAliasServicer(workflows)),
        (add_VariableServiceServicer_to_server, VariableServicer(pool)),
        (add_TemplateServiceServicer_to_server, TemplateServicer(workflows)),
        (add_SettingsServiceServicer_to_server, SettingsServicer(workflows)),
        (add_UserServiceServicer_to_server, UserServicer(identity)),
        (add_TeamServiceServicer_to_server, TeamServicer(identity)),
        (add_AuditServiceServicer_to_server, AuditServicer(parts.auth_pool)),
        (add_ServiceTokenServiceServicer_to_server, ServiceTokenServicer(identity)),
    ]


def _environments(stack: AsyncExitStack, settings: Settings) -> RunnerEnvironments:
    channel = open_channel(
        settings.runner_address, settings.service_token, trust=settings.trust, peer="runner"
    )
    stack.push_async_callback(channel.close)
    return RunnerEnvironments(channel)


def _redis(stack: AsyncExitStack, settings: Settings) -> Cache | None:
    if settings.redis_url is None:
        return None
    redis = Cache(settings.redis_url)
    stack.push_async_callback(redis.close)
    return redis


async def _pool(stack: AsyncExitStack, url: str, name: str, size_max: int) -> Pool:
    setting = f"{name.upper().replace('-', '_')}_DATABASE_URL"
    pool = await open_pool(url, application_name=name, setting=setting, size_max=size_max)
    stack.push_async_callback(pool.close)
    return pool


def serve() -> int:
    """Run the registry until it is stopped; returns the exit code."""
    return run_service("registry", build)
