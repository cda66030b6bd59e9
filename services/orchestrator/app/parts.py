"""The parts that an orchestrator is put together from."""

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
    """What everything else stands on."""

    env: Mapping[str, str]
    settings: Settings
    at_rest: AtRest
    api_pool: Pool
    engine_pool: Pool
    authenticator: Authenticator
    # Set when schedules and events changed, here or elsewhere: their loops look at once.
    schedules_changed: asyncio.Event = field(default_factory=asyncio.Event)
    events_changed: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """What starts, reads, watches and writes runs."""

    engine: Engine
    writer: Writer
    router: Router
    reader: Reader
    starter: Starter
    watcher: Watcher
    overlaps: Overlaps


@dataclass(frozen=True, slots=True, kw_only=True)
class Posting:
    """What posts events to their subscribers, signed with secrets derived from one key."""

    webhooks: Webhooks
    key: bytes
