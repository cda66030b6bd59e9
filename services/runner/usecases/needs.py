"""What an attempt needs from an interpreter: its key, and its environment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from services.runner.domain.attempts import AttemptRequest
from services.runner.domain.carried import carries_of
from services.runner.domain.environments import Package, packages_in
from services.runner.domain.limits import NOTHING_ASKED, Asked, limits_of
from services.runner.domain.network import Network
from services.runner.domain.outcome import AttemptError, ErrorType
from services.runner.domain.pooling import WarmKey
from services.runner.domain.reuse import Reuse, calls_at_once, reuse_of
from services.runner.gateways.sandbox.port import Interpreter
from services.runner.storage.nodes import NodeVersion
from services.runner.usecases.attempt import Refused, environment_error
from services.runner.usecases.container_rows import ContainerRow
from services.runner.usecases.environments import EnvironmentFailed, Environments
from services.runner.usecases.granted_secrets import NOTHING_GRANTED, Granted
from services.runner.usecases.loading import Loader
from services.runner.usecases.node_versions import NodeVersions
from services.runner.usecases.trace import tell_build
from services.runner.usecases.warm import Need

_NEEDS_KEPT_MAX: Final = 10_000
_ShortKey = tuple[int, int, Asked, float, Reuse, Network, int, str]


class Needs:
    """Determines the needs of requests, with a cache: most requests repeat an earlier one."""

    def __init__(
        self,
        *,
        versions: NodeVersions,
        environments: Environments,
        interpreters: Mapping[str, Interpreter],
        loader: Loader,
        caps: Asked = NOTHING_ASKED,
    ) -> None:
        self._versions = versions
        self._environments = environments
        self._interpreters = interpreters
        self._loader = loader
        self._caps = caps
        self._needs: dict[_ShortKey, Need] = {}
        self._keys: dict[WarmKey, WarmKey] = {}  # interned: identical objects compare fast

    def _key(self, request: AttemptRequest, version: NodeVersion, granted: Granted) -> WarmKey:
        reuse = reuse_of(
            request.reuse,
            own_code=version.tenant_id == request.tenant_id,
            with_secrets=bool(granted.mark),
        )
        return WarmKey(
            request.tenant_id,
            None if reuse.apart else version.id,
            self._environments.key_of(
                tenant_id=request.tenant_id,
                python_version=version.python_version,
                digest=version.lock_digest,
            ),
            limits_of(request.limits, self._caps, request.network),
            reuse,
            calls_at_once(
                request.concurrency,
                reuse,
                is_async=version.is_async,
                carries_files=any(carries_of(version.input_types, version.output_types)),
            ),
            granted.mark,
        )

    def known(self, request: AttemptRequest, granted: Granted) -> Need | None:
        """Return the cached need of an equal earlier request, if there was one."""
        return self._needs.get(_short_key(request, granted))

    async def key_of(self, request: AttemptRequest) -> WarmKey | None:
        """Return the key of a request's interpreter; None if the node version does not exist."""
        known = self.known(request, NOTHING_GRANTED)
        if known is not None:
            return known.key
        version = await self._versions.get(request.node_version_id)
        return None if version is None else self._key(request, version, NOTHING_GRANTED)

    def stands(self, need: Need) -> bool:
        """Return whether the environment of a cached need still exists."""
        return need.environment is None or (
            self._environments.ready(need.key.environment_key) is not None
        )

    async def make(self, request: AttemptRequest, granted: Granted) -> Need:
        """Determine a request's need, and build its environment; raises Refused."""
        version = await self._versions.get(request.node_version_id)
        if version is None:
            raise Refused(environment_error("the node version does not exist", retryable=False))
        interpreter = self._interpreters.get(version.python_version)
        if interpreter is None:
            raise Refused(
                environment_error(
                    f"this runner has no Python {version.python_version}", retryable=False
                )
            )
        key = self._key(request, version, granted)
        key = self._keys.setdefault(key, key)
        folder, row = await self._environment(key, version, request)
        carries = carries_of(version.input_types, version.output_types)
        need = Need(
            key=key,
            version=version,
            interpreter=interpreter,
            environment=folder,
            packages=packages_in(version.lock),
            load_timeout_s=request.timeout_s,
            carries=carries,
            plain=not (key.reuse.apart or key.concurrency > 1 or key.secrets or any(carries)),
        )
        if len(self._needs) >= _NEEDS_KEPT_MAX:
            self._needs.clear()
            self._keys.clear()
        self._needs[_short_key(request, granted)] = need
        return replace(need, row=row) if row is not None else need

    async def _environment(
        self, key: WarmKey, version: NodeVersion, request: AttemptRequest
    ) -> tuple[Path | None, ContainerRow | None]:
        """Find or build the environment; a build is shown in the row of the waiting sandbox."""
        if version.lock_state == "failed":
            raise Refused(
                AttemptError(
                    type=ErrorType.DEPENDENCY,
                    message=version.lock_error or "the dependencies could not be resolved",
                    retryable=False,
                )
            )
        if version.lock_state == "pending":
            raise Refused(environment_error("the dependencies are not resolved yet"))
        if not version.lock:
            return None, None
        row: ContainerRow | None = None

        def on(packages: Sequence[Package], status: str, time_ms: int | None) -> None:
            nonlocal row
            row = row or self._loader.new_row(key, version)
            row.packages(packages, status, lock_digest=version.lock_digest, time_ms=time_ms)

        try:
            began_ns = time.time_ns()
            folder = await self._environments.ensure(
                key.environment_key,
                version.lock,
                version.lock_digest,
                version.python_version,
                key.tenant_id,
                on,
            )
        except asyncio.CancelledError:
            if row is not None:
                row.ended("removed")
            raise
        except EnvironmentFailed as failed:
            if row is not None:
                row.ended("error")
            raise Refused(
                AttemptError(
                    type=ErrorType.DEPENDENCY, message=str(failed), retryable=failed.retryable
                )
            ) from None
        if row is not None and request.traceparent:
            tell_build(request, began_ns, packages=len(packages_in(version.lock)))
        return folder, row


def _short_key(request: AttemptRequest, granted: Granted) -> _ShortKey:
    """Return a cheap hash key of what determines the interpreter."""
    return (
        request.tenant_id.int,
        request.node_version_id.int,
        request.limits,
        request.timeout_s,
        request.reuse,
        request.network,
        request.concurrency,
        granted.mark,
    )
