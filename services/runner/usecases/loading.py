"""Turns a sandbox without code into an interpreter that serves calls."""

from __future__ import annotations

import asyncio
import time

from services.kit import crash
from services.runner.domain.limits import Tier
from services.runner.domain.outcome import AttemptError, ErrorType
from services.runner.domain.pooling import WarmKey
from services.runner.gateways.sandbox.port import Sandbox, SandboxDied
from services.runner.storage.nodes import NodeVersion
from services.runner.usecases.container_rows import ContainerRow, ContainerRows
from services.runner.usecases.spares import Shape, Spares
from services.runner.usecases.warm import LoadFailed, Need, Warm, error_from


class Loader:
    """Starts sandboxes, writes their rows, and loads code into them."""

    def __init__(self, *, spares: Spares, rows: ContainerRows, tier: Tier) -> None:
        self.spares = spares
        self._rows = rows
        self._tier = tier

    async def load(self, need: Need) -> Warm:
        """Start an interpreter for a need; raises LoadFailed, SandboxDied."""
        row = need.row
        if row is None or row.taken:
            row = self.new_row(need.key, need.version)
            row.packages(
                need.packages, "completed", lock_digest=need.version.lock_digest, time_ms=0
            )
        row.taken = True
        born = time.monotonic()
        sandbox: Sandbox | None = None
        crash.reach("container_intended")
        try:
            sandbox = await self.spares.start(
                Shape(need.interpreter, need.environment, need.key.limits)
            )
            crash.reach("container_started")
            row.running(sandbox.name)
            if not need.key.reuse.apart:
                await self._load_code(need, sandbox)
            shared = (
                sandbox.share(reply_bytes_max=need.key.limits.output_bytes + 4096)
                if need.key.concurrency > 1
                else None
            )
        except BaseException as problem:
            if sandbox is not None:
                await sandbox.kill()
            row.ended("error")
            if isinstance(problem, LoadFailed):
                problem.container_id = row.id
            raise
        return Warm(
            row=row,
            key=need.key,
            sandbox=sandbox,
            born=born,
            since=born,
            shared=shared,
            cpu_base_us=sandbox.usage().cpu_us,
        )

    def new_row(self, key: WarmKey, version: NodeVersion) -> ContainerRow:
        """Return a new row that records the intent to start a sandbox."""
        several = {"concurrency": key.concurrency} if key.concurrency > 1 else {}
        return ContainerRow(
            self._rows,
            tenant_id=key.tenant_id,
            node_version_id=version.id,
            python_version=version.python_version,
            limits={**key.limits.as_json(self._tier), "reuse": key.reuse.value, **several},
        )

    async def _load_code(self, need: Need, sandbox: Sandbox) -> None:
        version = need.version
        header = {
            "op": "prepare" if need.key.reuse.apart else "load",
            "version": str(version.id),
            "apart": need.key.reuse.value,
            "code": version.code,
            "main": version.main_function,
            "inputs": version.input_types,
            "outputs": version.output_types,
            "concurrency": need.key.concurrency,
            "env": sandbox.environment_path,
        }
        sandbox.begin_output()
        try:
            async with asyncio.timeout(need.load_timeout_s):
                reply = await sandbox.request(header)
        except TimeoutError:
            raise LoadFailed(
                AttemptError(
                    type=ErrorType.TIMEOUT,
                    message=f"the code was not loaded within {need.load_timeout_s:g} s",
                ),
                printed=sandbox.output_tails(),
            ) from None
        except SandboxDied as died:
            kind = ErrorType.OOM if died.oom else ErrorType.EXITED
            raise LoadFailed(
                AttemptError(type=kind, message=f"while the code was loaded: {died}"),
                printed=sandbox.output_tails(),
            ) from None
        if reply.header.get("op") != "loaded":
            raise LoadFailed(error_from(reply.header.get("error")), printed=sandbox.output_tails())

    async def prepare(self, warm: Warm, need: Need) -> None:
        """Register a version with an interpreter that loads code anew for each call."""
        if not need.key.reuse.apart or need.version.id in warm.prepared:
            return
        try:
            await self._load_code(need, warm.sandbox)
        except LoadFailed as failed:
            failed.container_id = warm.container_id
            raise
        warm.prepared.add(need.version.id)
