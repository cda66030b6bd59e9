"""One attempt from its request to its outcome."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import msgspec
import structlog
from qflow.types.values import ValueTextError, parse_strict

from services.kit import crash
from services.runner.domain.attempts import AttemptRequest
from services.runner.domain.carried import Carries, carries_of
from services.runner.domain.environments import Package, packages_in
from services.runner.domain.limits import MIB, NOTHING_ASKED, Asked, limits_of
from services.runner.domain.network import Network
from services.runner.domain.outcome import (
    INLINE_BYTES_MAX,
    NO_USAGE,
    AttemptError,
    ErrorType,
    Outcome,
    Usage,
)
from services.runner.domain.pooling import WarmKey
from services.runner.domain.pulse import Pulse
from services.runner.domain.reuse import Reuse, reuse_of
from services.runner.gateways.file_port import FileCorruptError
from services.runner.gateways.sandbox.port import Interpreter, Reply, SandboxDied
from services.runner.storage.nodes import NodeVersion
from services.runner.usecases.carried import CarriedFiles, Lent, NotCarried
from services.runner.usecases.container_rows import ContainerRow
from services.runner.usecases.environments import EnvironmentFailed, Environments
from services.runner.usecases.granted_secrets import (
    NOTHING_GRANTED,
    Granted,
    GrantedSecrets,
    SecretsRefused,
)
from services.runner.usecases.inputs import InputTooLarge, StoredInputs
from services.runner.usecases.interpreters import (
    InterpreterPool,
    LoadFailed,
    Need,
    Warm,
    error_from,
)
from services.runner.usecases.node_logs import NodeLogs
from services.runner.usecases.node_versions import NodeVersions
from services.runner.usecases.trace import place_of, tell_build

log = structlog.get_logger()

# Above this a text is checked beside the loop, so that one call does not hold up the others.
_CHECK_INLINE_BYTES: Final = 16 * 1024
_NEEDS_KEPT_MAX: Final = 10_000
_ShortKey = tuple[int, int, Asked, float, Reuse, Network, str]
# Values that are strict JSON at a glance: most results of small functions.
_PLAIN: Final = re.compile(rb'-?(?:0|[1-9][0-9]{0,17})|true|false|null|"[ !#-\[\]-~]{0,256}"')


@dataclass(slots=True, eq=False)
class Attempt:
    """One attempt under way, and how it was told to end."""

    request: AttemptRequest
    warm: Warm | None = None
    container_id: UUID | None = None
    told: str = ""  # "", "killed", "timeout" or "silent"
    pulse: Pulse | None = None  # of the call, once it has begun
    grace_s: float = 0.0
    transfer_us: int = 0
    granted: Granted = NOTHING_GRANTED
    task: asyncio.Task[Any] | None = None
    begun: bool = False  # whether the task has taken its first step


class Attempts:
    """Runs attempts in the pool's interpreters."""

    def __init__(
        self,
        *,
        pool: InterpreterPool,
        versions: NodeVersions,
        environments: Environments,
        interpreters: Mapping[str, Interpreter],
        stored: StoredInputs,
        logs: NodeLogs,
        carried: CarriedFiles,
        secrets: GrantedSecrets | None = None,
        caps: Asked = NOTHING_ASKED,
        grace_s: float = 1.0,
    ) -> None:
        self._grace_s = grace_s
        self._caps = caps
        self._pool = pool
        self._logs = logs
        self._versions = versions
        self._environments = environments
        self._interpreters = interpreters
        self._stored = stored
        self._carried = carried
        self._secrets = secrets
        self._carries: dict[UUID, Carries] = {}
        self._needs: dict[_ShortKey, Need] = {}
        self._killing: set[asyncio.Task[None]] = set()

    async def run(self, attempt: Attempt) -> Outcome:
        """Give what became of it; whatever user code does is an outcome, never an exception."""
        crash.reach("attempt_taken")
        need: Need | None = None
        try:
            granted = attempt.granted = await self._granted(attempt.request)
            need = self._needs.get(_short_key(attempt.request, granted))
            warm = None if need is None else self._pool.acquire_idle(need.key)
            if warm is None:
                if need is None or not self._stands(need):
                    need = await self._need(attempt.request, granted)
                warm = await self._pool.acquire(need)
        except _Refused as refused:
            return Outcome(error=refused.error)
        except LoadFailed as failed:
            attempt.container_id = failed.container_id
            stdout, stderr = failed.printed
            return Outcome(error=failed.error, stdout_tail=stdout, stderr_tail=stderr)
        except SandboxDied as died:
            return Outcome(error=_environment_error(str(died)))
        finally:
            if need is not None and need.row is not None and not need.row.taken:
                need.row.ended("removed")  # another sandbox served the call
        assert need is not None, "an interpreter is for a need"
        attempt.warm = warm
        attempt.container_id = warm.container_id
        recycle = True
        worked_s: float | None = None
        try:
            if warm.key.reuse.apart:
                await self._pool.prepare(warm, need)
            outcome = await self._call(attempt, warm, self._carries_of(need.version))
            recycle = bool(outcome.recycle)
            worked_s = None if recycle else outcome.usage.worked_s
            return outcome
        except LoadFailed as failed:
            stdout, stderr = failed.printed
            error = _told_error(attempt) if attempt.told else failed.error
            return Outcome(error=error, stdout_tail=stdout, stderr_tail=stderr)
        finally:
            attempt.warm = None
            warm.row.used(
                attempts=warm.uses,
                cpu_us=warm.cpu_us,
                memory_peak_bytes=warm.memory_peak_bytes,
                io_read_bytes=warm.io_read_bytes,
                io_write_bytes=warm.io_write_bytes,
            )
            self._pool.release(warm, recycle=recycle, worked_s=worked_s)

    def tell_to_end(self, attempt: Attempt, why: str, *, grace_s: float) -> None:
        """Stop an attempt: the first word counts, its sandbox goes with it."""
        if not attempt.told:
            attempt.told = why
            attempt.grace_s = grace_s
        if attempt.warm is not None:
            killing = asyncio.ensure_future(self._pool.kill(attempt.warm, grace_s=grace_s))
            self._killing.add(killing)
            killing.add_done_callback(self._killing.discard)
        elif attempt.task is not None and why == "killed":
            attempt.task.cancel()

    # -- before the call

    async def _granted(self, request: AttemptRequest) -> Granted:
        if self._secrets is None:
            return NOTHING_GRANTED
        tenant_id, version_id = request.tenant_id, request.node_version_id
        known = self._secrets.known(tenant_id, version_id)
        if known is not None:
            return known
        try:
            return await self._secrets.read(tenant_id, version_id)
        except SecretsRefused as refused:
            raise _Refused(_environment_error(str(refused), retryable=False)) from None

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
            granted.mark,
        )

    def _stands(self, need: Need) -> bool:
        """Whether the environment of a need that was met before is still there."""
        return need.environment is None or (
            self._environments.ready(need.key.environment_key) is not None
        )

    async def _need(self, request: AttemptRequest, granted: Granted) -> Need:
        version = await self._versions.get(request.node_version_id)
        if version is None:
            raise _Refused(_environment_error("the node version does not exist", retryable=False))
        interpreter = self._interpreters.get(version.python_version)
        if interpreter is None:
            raise _Refused(
                _environment_error(
                    f"this runner has no Python {version.python_version}", retryable=False
                )
            )
        key = self._key(request, version, granted)
        folder, row = await self._environment(key, version, request)
        need = Need(
            key=key,
            version=version,
            interpreter=interpreter,
            environment=folder,
            packages=packages_in(version.lock),
            load_timeout_s=request.timeout_s,
        )
        if len(self._needs) >= _NEEDS_KEPT_MAX:
            self._needs.clear()
        self._needs[_short_key(request, granted)] = need
        return replace(need, row=row) if row is not None else need

    async def _environment(
        self, key: WarmKey, version: NodeVersion, request: AttemptRequest
    ) -> tuple[Path | None, ContainerRow | None]:
        """Find or build the environment; a build shows in the row of the sandbox that waits."""
        if version.lock_state == "failed":
            raise _Refused(
                AttemptError(
                    type=ErrorType.DEPENDENCY,
                    message=version.lock_error or "the dependencies could not be resolved",
                    retryable=False,
                )
            )
        if version.lock_state == "pending":
            raise _Refused(_environment_error("the dependencies are not resolved yet"))
        if not version.lock:
            return None, None
        row: ContainerRow | None = None

        def on(packages: Sequence[Package], status: str, time_ms: int | None) -> None:
            nonlocal row
            row = row or self._pool.new_row(key, version)
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
            raise _Refused(
                AttemptError(
                    type=ErrorType.DEPENDENCY, message=str(failed), retryable=failed.retryable
                )
            ) from None
        if row is not None and request.traceparent:
            tell_build(request, began_ns, packages=len(packages_in(version.lock)))
        return folder, row

    # -- the call

    def _carries_of(self, version: NodeVersion) -> Carries:
        known = self._carries.get(version.id)
        if known is None:
            if len(self._carries) >= _NEEDS_KEPT_MAX:
                self._carries.clear()
            known = self._carries[version.id] = carries_of(
                version.input_types, version.output_types
            )
        return known

    async def _call(self, attempt: Attempt, warm: Warm, carries: Carries) -> Outcome:
        began = time.monotonic()
        request = attempt.request
        if attempt.told:
            return Outcome(error=_told_error(attempt), recycle="told to end")
        try:
            inputs, body = await self._inputs(request, warm.key.limits.memory_bytes)
        except FileCorruptError as problem:
            return Outcome(error=_environment_error(f"an input cannot be read: {problem}"))
        except InputTooLarge:
            limit = warm.key.limits.memory_bytes // MIB
            message = f"out of memory: the inputs alone take more than the limit, {limit} MiB"
            return Outcome(error=AttemptError(type=ErrorType.OOM, message=message, retryable=False))
        header = {
            "op": "call",
            "id": request.token,
            "inputs": inputs,
            "output_bytes_max": warm.key.limits.output_bytes,
            "context": _context(request) | attempt.granted.variables,
            "log_room": self._logs.caps.bytes_max,
        }
        if warm.key.reuse.apart:
            header["version"] = str(request.node_version_id)
        if carries.inputs or carries.outputs:
            return await self._call_with_files(attempt, warm, carries, (header, body), began)
        return await self._ask(attempt, warm, header, body, began)

    async def _call_with_files(
        self,
        attempt: Attempt,
        warm: Warm,
        carries: Carries,
        frame: tuple[dict[str, Any], bytes],
        began: float,
    ) -> Outcome:
        """Lend the call its files, and take them back whatever became of it."""
        header, body = frame
        try:
            lent = await self._carried.lend(
                attempt.request, warm.sandbox, carries, _texts(header["inputs"], body)
            )
        except NotCarried as refused:
            return Outcome(error=refused.error)
        try:
            header |= lent.header
            if lent.output is not None:
                header["context"]["QFLOW_OUTPUT_FILE"] = warm.sandbox.output_path
            return await self._ask(attempt, warm, header, body, began, lent)
        finally:
            await self._carried.give_back(lent)

    async def _ask(
        self,
        attempt: Attempt,
        warm: Warm,
        header: dict[str, Any],
        body: bytes,
        began: float,
        lent: Lent | None = None,
    ) -> Outcome:
        request, sandbox = attempt.request, warm.sandbox
        written = self._logs.open(request)
        loop = asyncio.get_running_loop()
        pulse = attempt.pulse = Pulse(request.heartbeat_timeout_s, now_s=loop.time())
        mask = attempt.granted.mask
        sandbox.begin_output(written, lambda said: pulse.beat(said, now_s=loop.time()), mask)
        attempt.transfer_us = round((time.monotonic() - began) * 1_000_000)
        timer = loop.call_later(request.timeout_s, self._on_timeout, attempt)
        watch = loop.create_task(self._watch(attempt, pulse)) if pulse.timeout_s else None
        try:
            reply = await sandbox.request(
                header,
                body,
                reply_bytes_max=warm.key.limits.output_bytes + 4096,
                descriptors_max=0 if lent is None else lent.descriptors_max,
            )
        except SandboxDied as died:
            stdout, stderr = sandbox.output_tails()
            written.close()
            return Outcome(
                error=_died_error(attempt, died),
                usage=_usage_of_dead(warm, time.monotonic() - began),
                stdout_tail=stdout,
                stderr_tail=stderr,
                recycle="died",
                progress=pulse.progress(),
            )
        finally:
            timer.cancel()
            if watch is not None:
                watch.cancel()
        crash.reach("attempt_answered")
        outcome = await self._outcome(attempt, warm, reply)
        written.close()
        if lent is not None:
            outcome = await self._with_files(attempt, warm, lent, reply, outcome)
        warm.cpu_us += outcome.usage.cpu_us
        warm.io_read_bytes += outcome.usage.io_read_bytes
        warm.io_write_bytes += outcome.usage.io_write_bytes
        warm.memory_peak_bytes = max(warm.memory_peak_bytes, outcome.usage.memory_peak_bytes)
        return outcome

    async def _with_files(
        self, attempt: Attempt, warm: Warm, lent: Lent, reply: Reply, outcome: Outcome
    ) -> Outcome:
        if outcome.error is not None:
            for descriptor in reply.descriptors:
                os.close(descriptor)
            return outcome
        began = time.monotonic()
        try:
            await self._carried.take(attempt.request, warm.sandbox, lent, reply)
        except NotCarried as refused:
            return outcome._replace(error=refused.error, outputs=())
        attempt.transfer_us += round((time.monotonic() - began) * 1_000_000)
        return outcome

    async def _watch(self, attempt: Attempt, pulse: Pulse) -> None:
        """End an attempt whose code falls silent."""
        loop = asyncio.get_running_loop()
        while (left_s := pulse.due_s() - loop.time()) > 0:  # noqa: ASYNC110  # beats move the time
            await asyncio.sleep(left_s)
        self.tell_to_end(attempt, "silent", grace_s=self._grace_s)

    def _on_timeout(self, attempt: Attempt) -> None:
        self.tell_to_end(attempt, "timeout", grace_s=self._grace_s)

    async def _inputs(
        self, request: AttemptRequest, bytes_max: int
    ) -> tuple[list[list[Any]], bytes]:
        entries: list[list[Any]] = []
        parts: list[bytes] = []
        for given in request.inputs:
            value = given.value
            if not isinstance(value, bytes):
                value = await self._stored.text(value, request.tenant_id, bytes_max=bytes_max)
            bytes_max -= len(value)
            entries.append([given.name, len(value), [given.conversion] if given.conversion else []])
            parts.append(value)
        return entries, b"".join(parts)

    # -- the outcome

    async def _outcome(self, attempt: Attempt, warm: Warm, reply: Reply) -> Outcome:
        header = reply.header
        stdout, stderr = warm.sandbox.output_tails()
        usage = _usage(header.get("usage"))
        recycle = str(header.get("recycle") or "")[:100]
        error: AttemptError | None = None
        outputs: list[tuple[str, bytes]] = []
        if attempt.told:
            error, recycle = _told_error(attempt), recycle or "told to end"
        elif header.get("op") != "result" or header.get("id") != attempt.request.token:
            error = AttemptError(type=ErrorType.EXITED, message="the agent answered out of turn")
            recycle = "out of turn"
        elif "error" in header:
            error = attempt.granted.mask.error(error_from(header["error"]))
            # Where the call had a process of its own, that has ended with it.
            if error.type in {ErrorType.EXITED, ErrorType.OOM} and not warm.key.reuse.apart:
                recycle = recycle or error.type.value
        else:
            try:
                outputs = _split(header.get("outputs"), reply.body, attempt.request.outputs)
                if mask := attempt.granted.mask:
                    outputs = await asyncio.to_thread(mask.outputs, outputs)
                await _check(outputs)
            except ValueTextError as problem:
                error = AttemptError(type=ErrorType.SERIALIZATION, message=str(problem)[:1000])
                outputs = []
        return Outcome(
            outputs=outputs,
            error=error,
            usage=usage,
            stdout_tail=stdout,
            stderr_tail=stderr,
            recycle=recycle,
            progress="" if error is None or attempt.pulse is None else attempt.pulse.progress(),
        )


class _Refused(Exception):  # noqa: N818 - it carries an error that is an outcome
    def __init__(self, error: AttemptError) -> None:
        super().__init__(error.message)
        self.error = error


_skip: Final = msgspec.json.Decoder(msgspec.Raw).decode


def _texts(entries: Sequence[Sequence[Any]], body: bytes) -> list[tuple[str, bytes]]:
    """Cut a call's body into its inputs again."""
    texts = []
    offset = 0
    for name, length, _ in entries:
        texts.append((name, body[offset : offset + length]))
        offset += length
    return texts


def _short_key(request: AttemptRequest, granted: Granted) -> _ShortKey:
    """Name what decides the interpreter, cheap to hash."""
    return (
        request.tenant_id.int,
        request.node_version_id.int,
        request.limits,
        request.timeout_s,
        request.reuse,
        request.network,
        granted.mark,
    )


def _context(request: AttemptRequest) -> dict[str, str]:
    deadline = datetime.now(UTC) + timedelta(seconds=request.timeout_s)
    told = {
        "QFLOW_RUN_ID": str(request.execution_id),
        "QFLOW_NODE_ID": request.node_id,
        "QFLOW_ATTEMPT": str(request.attempt),
        "QFLOW_IDEMPOTENCY_KEY": str(request.attempt_ref),  # the same for every attempt of the node
        "QFLOW_DEADLINE": deadline.isoformat(),
    }
    if request.traceparent:  # the W3C's name for it: tracing libraries look there
        told["TRACEPARENT"] = place_of(request)
    if request.progress:
        told["QFLOW_PROGRESS"] = request.progress
    return told


def _split(entries: object, body: bytes, wanted: Sequence[str]) -> list[tuple[str, bytes]]:
    """Cut the body into the outputs that are wanted, in their order."""
    found: dict[str, bytes] = {}
    offset = 0
    if not isinstance(entries, list):
        raise ValueTextError("the agent's outputs cannot be read")
    for entry in entries:
        match entry:
            case [str(name), int(length)] if 0 <= length <= len(body) - offset:
                found[name] = body[offset : offset + length]
                offset += length
            case _:
                raise ValueTextError("the agent's outputs cannot be read")
    missing = [name for name in wanted if name not in found]
    if missing or offset != len(body):
        raise ValueTextError(f"the output {missing[0] if missing else ''!r} is missing")
    return [(name, found[name]) for name in wanted]


async def _check(outputs: Sequence[tuple[str, bytes]]) -> None:
    """Prove that what left the sandbox is JSON: user code may have forged it.

    What goes into rows is read strictly. What becomes a file, tens of megabytes perhaps, is only
    skimmed, for no more than its own size: whoever takes it as an input reads it strictly, inside
    a sandbox.
    """
    size = sum(len(text) for _, text in outputs)
    if size <= _CHECK_INLINE_BYTES:
        _read_strictly(outputs)
    else:
        check = _read_strictly if size <= INLINE_BYTES_MAX else _skim
        await asyncio.to_thread(check, outputs)


def _read_strictly(outputs: Sequence[tuple[str, bytes]]) -> None:
    for _, text in outputs:
        if _PLAIN.fullmatch(text) is None:
            parse_strict(text)


def _skim(outputs: Sequence[tuple[str, bytes]]) -> None:
    for _, text in outputs:
        try:
            text.decode()
            _skip(text)
        except (UnicodeDecodeError, msgspec.DecodeError) as problem:
            raise ValueTextError(f"is not JSON: {problem}") from None
        except RecursionError:
            raise ValueTextError("is nested too deep") from None


def _usage(found: object) -> Usage:
    if not isinstance(found, dict):
        return NO_USAGE
    read, write = 0, 0
    match found.get("io"):
        case [int(read), int(write)]:
            pass
    return Usage(
        cpu_us=_count(found.get("cpu_us")),
        memory_peak_bytes=_count(found.get("max_rss_kb")) * 1024,
        wall_us=_count(found.get("wall_us")),
        serialization_us=_count(found.get("serialization_us")),
        io_read_bytes=_count(read),
        io_write_bytes=_count(write),
    )


def _usage_of_dead(warm: Warm, wall_s: float) -> Usage:
    """Give what an attempt used whose agent cannot tell any more, by its control group.

    The highest mark of memory is of the sandbox's whole life: who died of it was the highest.
    """
    used = warm.sandbox.usage()
    cpu_us = max(0, used.cpu_us - warm.cpu_base_us - warm.cpu_us)
    warm.cpu_us += cpu_us
    warm.memory_peak_bytes = max(warm.memory_peak_bytes, used.memory_peak_bytes)
    return Usage(
        cpu_us=cpu_us,
        memory_peak_bytes=used.memory_peak_bytes,
        wall_us=round(wall_s * 1_000_000),
    )


def _count(value: object) -> int:
    return min(value, 2**50) if isinstance(value, int) and value > 0 else 0


def _environment_error(message: str, *, retryable: bool = True) -> AttemptError:
    return AttemptError(type=ErrorType.ENVIRONMENT, message=message, retryable=retryable)


def _told_error(attempt: Attempt) -> AttemptError:
    if attempt.told == "timeout":
        return AttemptError(
            type=ErrorType.TIMEOUT,
            message=f"the attempt took longer than {attempt.request.timeout_s:g} s",
        )
    if attempt.told == "silent" and attempt.pulse is not None:
        return AttemptError(type=ErrorType.HEARTBEAT_TIMEOUT, message=attempt.pulse.silence())
    return AttemptError(type=ErrorType.CANCELLED, message="the attempt was stopped")


def _died_error(attempt: Attempt, died: SandboxDied) -> AttemptError:
    if attempt.told:
        return _told_error(attempt)
    if died.oom:
        limit = attempt.warm.key.limits.memory_bytes if attempt.warm else 0
        return AttemptError(
            type=ErrorType.OOM, message=f"out of memory: the limit is {limit // MIB} MiB"
        )
    return AttemptError(type=ErrorType.EXITED, message=str(died))
