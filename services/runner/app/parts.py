"""The parts that a runner is assembled from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from services.kit.at_rest import AtRest
from services.kit.pg import Pool
from services.runner.domain.network import Reach
from services.runner.gateways.file_port import FileBytes
from services.runner.gateways.sandbox.canary import Probe
from services.runner.gateways.sandbox.cgroups import CgroupHost
from services.runner.gateways.sandbox.port import Interpreter, SandboxHost
from services.runner.gateways.wheel_store import WheelStore
from services.runner.loops.attach import Streams
from services.runner.settings import Settings
from services.runner.usecases.container_rows import ContainerRows
from services.runner.usecases.desk import Desk
from services.runner.usecases.environment_room import Room
from services.runner.usecases.environments import Environments
from services.runner.usecases.interpreters import InterpreterPool
from services.runner.usecases.loading import Loader
from services.runner.usecases.membership import Membership
from services.runner.usecases.node_logs import NodeLogs
from services.runner.usecases.node_versions import NodeVersions
from services.runner.usecases.secrets import Secrets
from services.runner.usecases.spares import Spares
from services.runner.usecases.tenant_packages import TenantPackages


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What all other parts depend on."""

    env: Mapping[str, str]
    settings: Settings
    api_pool: Pool
    engine_pool: Pool
    at_rest: AtRest
    cgroups: CgroupHost | None
    host: SandboxHost
    proven: Probe
    interpreters: dict[str, Interpreter]
    membership: Membership

    @property
    def pythons(self) -> tuple[str, ...]:
        """The versions that nodes may ask for."""
        return tuple(self.interpreters)

    def incarnation(self) -> UUID:
        """Return the current incarnation of this runner."""
        return self.membership.incarnation


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    """What nodes import: wheels, environments, and the secrets for private indexes."""

    folder: Path
    room: Room
    wheels: WheelStore
    secrets: Secrets
    tenants: TenantPackages
    environments: Environments


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What runs attempts and reports on them."""

    rows: ContainerRows
    logs: NodeLogs
    store: FileBytes
    versions: NodeVersions
    loader: Loader
    spares: Spares
    pool: InterpreterPool
    desk: Desk
    streams: Streams
    networks: Sequence[Reach]
