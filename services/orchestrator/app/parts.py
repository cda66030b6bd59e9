"""The parts of an orchestrator service."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.kit.at_rest import AtRest
from services.kit.pg import Pool
from services.kit.rpc.identity import Authenticator
from services.orchestrator.engine.engine import Engine
from services.orchestrator.gateways.webhooks import Webhooks
from services.orchestrator.loops.writing import Writer
from services.orchestrator.settings import Settings
from services.orchestrator.usecases.forward import Router
from services.orchestrator.usecases.overlaps import Overlaps
from services.orchestrator.usecases.read import Reader
from services.orchestrator.usecases.start import Starter
from services.orchestrator.usecases.watch import Watcher


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """Settings, pools and what else all parts use."""

    env: Mapping[str, str]
    settings: Settings
    at_rest: AtRest
    api_pool: Pool
    engine_pool: Pool
    authenticator: Authenticator
    # Set when schedules or events changed, here or elsewhere, to wake their loops.
    schedules_changed: asyncio.Event = field(default_factory=asyncio.Event)
    events_changed: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """The parts that start, read, watch and write runs."""

    engine: Engine
    writer: Writer
    router: Router
    reader: Reader
    starter: Starter
    watcher: Watcher
    overlaps: Overlaps


@dataclass(frozen=True, slots=True, kw_only=True)
class Posting:
    """The client that posts events, and the key from which signing secrets are derived."""

    webhooks: Webhooks
    key: bytes
