"""The registry put together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from qflow.registry.v1 import (
    node_service_pb2_grpc,
    session_service_pb2_grpc,
    type_service_pb2_grpc,
    workflow_service_pb2_grpc,
)

from services.kit.pg import Pool, open_pool
from services.kit.rpc.auth import Authenticator
from services.kit.rpc.channel import open_channel
from services.kit.run import App, listener, run_service
from services.registry.gateways.environments import RunnerEnvironments
from services.registry.gateways.graph_checker import GraphChecker
from services.registry.gateways.passwords import Passwords
from services.registry.gateways.source_analyzer.child import SourceAnalyzer
from services.registry.loops.locks import make_locks
from services.registry.rpc.nodes import NodeServicer
from services.registry.rpc.sessions import SessionServicer
from services.registry.rpc.types import TypeServicer
from services.registry.rpc.workflows import WorkflowServicer
from services.registry.settings import Settings
from services.registry.usecases.custom_types import Types
from services.registry.usecases.locks import Locks
from services.registry.usecases.nodes import Nodes
from services.registry.usecases.workflows import Workflows


@asynccontextmanager
async def build(env: Mapping[str, str]) -> AsyncIterator[App]:
    """Open what the registry needs, and close it afterwards."""
    settings = Settings.from_env(env)
    async with AsyncExitStack() as stack:
        pool = await _pool(stack, settings.database_url, "qflow-registry", settings.pool_size_max)
        auth_pool = await _pool(stack, settings.auth_database_url, "qflow-registry-auth", 2)
        engine_pool = await _pool(stack, settings.engine_database_url, "qflow-registry-engine", 2)
        channel = open_channel(settings.runner_address, settings.service_token)
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
        )
        checker = GraphChecker()
        workflows = Workflows(pool=pool, checker=checker, python_version=settings.python_version)
        sessions = SessionServicer(
            auth_pool,
            Passwords(),
            lifetime=settings.session_lifetime,
            forget=authenticator.forget,
        )
        yield App(
            listener=listener(env, "registry", settings.listen_default),
            authenticator=authenticator,
            servicers=[
                (session_service_pb2_grpc.add_SessionServiceServicer_to_server, sessions),
                (
                    node_service_pb2_grpc.add_NodeServiceServicer_to_server,
                    NodeServicer(nodes, checker),
                ),
                (
                    workflow_service_pb2_grpc.add_WorkflowServiceServicer_to_server,
                    WorkflowServicer(workflows),
                ),
                (type_service_pb2_grpc.add_TypeServiceServicer_to_server, TypeServicer(types)),
            ],
            loops=[partial(make_locks, locks)],
        )


async def _pool(stack: AsyncExitStack, url: str, name: str, size_max: int) -> Pool:
    setting = f"{name.upper().replace('-', '_')}_DATABASE_URL"
    pool = await open_pool(url, application_name=name, setting=setting, size_max=size_max)
    stack.push_async_callback(pool.close)
    return pool


def serve() -> int:
    """Run the registry until it is told to stop."""
    return run_service("registry", build)
