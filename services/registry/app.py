"""The registry put together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from qflow.registry.v1 import (
    audit_service_pb2_grpc,
    builtin_node_service_pb2_grpc,
    diff_service_pb2_grpc,
    exchange_service_pb2_grpc,
    node_service_pb2_grpc,
    service_token_service_pb2_grpc,
    session_service_pb2_grpc,
    settings_service_pb2_grpc,
    tag_service_pb2_grpc,
    team_service_pb2_grpc,
    template_service_pb2_grpc,
    type_service_pb2_grpc,
    user_service_pb2_grpc,
    variable_service_pb2_grpc,
    workflow_alias_service_pb2_grpc,
    workflow_service_pb2_grpc,
)

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
from services.registry.rpc.fresh import forgetting, recent_answers
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


@asynccontextmanager
async def build(env: Mapping[str, str]) -> AsyncIterator[App]:
    """Open what the registry needs, and close it afterwards."""
    settings = Settings.from_env(env)
    async with AsyncExitStack() as stack:
        pool = await _pool(stack, settings.database_url, "qflow-registry", settings.pool_size_max)
        auth_pool = await _pool(stack, settings.auth_database_url, "qflow-registry-auth", 2)
        engine_pool = await _pool(stack, settings.engine_database_url, "qflow-registry-engine", 4)
        channel = open_channel(
            settings.runner_address, settings.service_token, trust=settings.trust, peer="runner"
        )
        stack.push_async_callback(channel.close)
        authenticator = Authenticator(pool)
        locks = Locks(engine_pool, RunnerEnvironments(channel))
        analyzer = SourceAnalyzer()
        types = Types(pool=pool, analyzer=analyzer, python_version=settings.python_version)
        nodes = Nodes(
            pool=pool,
            analyzer=analyzer,
            locks=locks,
            python_version=settings.python_version,
            search=engine_pool,
        )
        checker = GraphChecker()
        workflows = Workflows(
            pool=pool,
            checker=checker,
            python_version=settings.python_version,
            search=engine_pool,
            caps=settings.caps,
        )
        exchange = Exchange(nodes=nodes, workflows=workflows, documents=Documents())
        identity = Identity(
            auth_pool=auth_pool,
            passwords=Passwords(),
            session_lifetime=settings.session_lifetime,
            forget=authenticator.forget,
            forget_member=authenticator.forget_member,
        )
        redis = cache = None
        leaned_on = [database(pool)]
        if settings.redis_url is not None:
            redis = Cache(settings.redis_url)
            stack.push_async_callback(redis.close)
            leaned_on.append(Dependency("redis", redis.answers, essential=False))
            cache = DefinitionCache(redis, settings.service_token)
        reading, answers = Reading(pool, cache), recent_answers()
        asked = {"tokens": authenticator.asked, "answers": answers.asked}
        if redis is not None:
            asked["definitions"] = redis.asked
        servicers: list[Servicer] = [
            (
                session_service_pb2_grpc.add_SessionServiceServicer_to_server,
                SessionServicer(identity),
            ),
            (
                builtin_node_service_pb2_grpc.add_BuiltinNodeServiceServicer_to_server,
                BuiltinNodeServicer(),
            ),
            (
                node_service_pb2_grpc.add_NodeServiceServicer_to_server,
                NodeServicer(nodes, reading, answers, checker),
            ),
            (
                workflow_service_pb2_grpc.add_WorkflowServiceServicer_to_server,
                WorkflowServicer(workflows, reading, answers),
            ),
            (
                exchange_service_pb2_grpc.add_ExchangeServiceServicer_to_server,
                ExchangeServicer(exchange),
            ),
            (diff_service_pb2_grpc.add_DiffServiceServicer_to_server, DiffServicer(exchange)),
            (type_service_pb2_grpc.add_TypeServiceServicer_to_server, TypeServicer(types)),
            (tag_service_pb2_grpc.add_TagServiceServicer_to_server, TagServicer(pool)),
            (
                workflow_alias_service_pb2_grpc.add_WorkflowAliasServiceServicer_to_server,
                WorkflowAliasServicer(workflows),
            ),
            (
                variable_service_pb2_grpc.add_VariableServiceServicer_to_server,
                VariableServicer(pool),
            ),
            (
                template_service_pb2_grpc.add_TemplateServiceServicer_to_server,
                TemplateServicer(workflows),
            ),
            (
                settings_service_pb2_grpc.add_SettingsServiceServicer_to_server,
                SettingsServicer(workflows),
            ),
            (user_service_pb2_grpc.add_UserServiceServicer_to_server, UserServicer(identity)),
            (team_service_pb2_grpc.add_TeamServiceServicer_to_server, TeamServicer(identity)),
            (audit_service_pb2_grpc.add_AuditServiceServicer_to_server, AuditServicer(auth_pool)),
            (
                service_token_service_pb2_grpc.add_ServiceTokenServiceServicer_to_server,
                ServiceTokenServicer(identity),
            ),
        ]
        yield App(
            listener=listener(env, "registry", settings.listen_default),
            authenticator=authenticator,
            recorder=Recorder(engine_pool, "registry"),
            servicers=[forgetting(each, answers) for each in servicers],
            loops=[partial(make_locks, locks)],
            dependencies=leaned_on,
            figures=[
                pools({"api": pool, "auth": auth_pool, "engine": engine_pool}),
                caches(asked),
            ],
        )


async def _pool(stack: AsyncExitStack, url: str, name: str, size_max: int) -> Pool:
    setting = f"{name.upper().replace('-', '_')}_DATABASE_URL"
    pool = await open_pool(url, application_name=name, setting=setting, size_max=size_max)
    stack.push_async_callback(pool.close)
    return pool


def serve() -> int:
    """Run the registry until it is told to stop."""
    return run_service("registry", build)
