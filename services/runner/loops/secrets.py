"""Rotation of root keys: secrets wrapped under an old key are rewrapped."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

import structlog

from services.runner.usecases.granted_secrets import GrantedSecrets
from services.runner.usecases.patience import passing

log = structlog.get_logger()

_CHECK_S: Final = 300.0


async def rewrap_secrets(granted: GrantedSecrets, stop: asyncio.Event) -> None:
    """Rewrap every secret under the current root key, at the start and periodically."""
    while not stop.is_set():
        try:
            await granted.rewrap_all()
        except Exception as problem:
            if not passing(problem):
                raise
            log.warning("secrets_not_rewrapped", fault=type(problem).__name__)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), _CHECK_S)
