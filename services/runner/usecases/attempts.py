"""Runs one attempt from its request to its outcome."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from services.kit import crash
from services.runner.domain.attempts import AttemptRequest
from services.runner.domain.carried import Carries
from services.runner.domain.limits import MIB
from services.runner.domain.outcome import AttemptError, ErrorType, Outcome
from services.runner.domain.pooling import WarmKey
from services.runner.gateways.file_port import FileCorruptError
from services.runner.gateways.sandbox.port import Reply, SandboxDied, Talk
from services.runner.usecases.attempt import (
    Attempt,
    Refused,
    environment_error,
    told_error,
)
from services.runner.usecases.calls import (
    REPLY_BYTES_MORE,
    Calls,
    give_back,
    outcome_without_one,
)
from services.runner.usecases.carried import CarriedFiles, Lent, NotCarried
from services.runner.usecases.granted_secrets import (
    NOTHING_GRANTED,
    Granted,
    GrantedSecrets,
    SecretsRefused,
)
from services.runner.usecases.inputs import InputTooLarge, StoredInputs
from services.runner.usecases.interpreters import InterpreterPool
from services.runner.usecases.loading import Loader
from services.runner.usecases.needs import Needs
from services.runner.usecases.node_logs import NodeLogs
from services.runner.usecases.plain_calls import Over, PlainCall, is_inline
from services.runner.usecases.warm import LoadFailed, Need, Warm

# Concurrent calls hide leftovers of each other; after this many calls without proof that nothing
# was left, the interpreter is recycled.
_UNPROVEN_MAX: Final = 1_000


class Attempts:
    """Runs attempts in the pool's interpreters."""

    def __init__(
        self,
        *,
        pool: InterpreterPool,
        loader: Loader,
        needs: Needs,
        stored: StoredInputs,
        logs: NodeLogs,
        carried: CarriedFiles,
        secrets: GrantedSecrets | None = None,
        grace_s: float = 1.0,
    ) -> None:
        self._grace_s = grace_s
        self._pool = pool
        self._loader = loader
        self._calls = Calls(logs, self._overdue)
        self._needs = needs
        self._stored = stored
        self._carried = carried
        self._secrets = secrets
        self._killing: set[asyncio.Task[None]] = set()

    def begin(self, attempt: Attempt, over: Over, left: Callable[[], None]) -> bool:
        """Begin a call that only needs an interpreter, without a task; False if it needs more.

        `over` is called with the outcome, from a callback of the loop and never before this
        returns; then `left`, once the interpreter is released. Most calls need no task, which would
        take three more iterations of the loop.
        """
        request = attempt.request
        granted = self._known(request)
        need = None if granted is None else self._needs.known(request, granted)
        if granted is None or need is None or not need.plain or not is_inline(request.inputs):
            return False
        warm = self._pool.acquire_open(need.key)
        if warm is None and not self._needs.stands(need):
            return False
        crash.reach("attempt_taken")
        attempt.granted = granted
        call = PlainCall(self._calls, self._pool, attempt, over, left)
        if warm is None:
            call.wait(need)
        else:
            call.begin(warm)
        return True

    async def run(self, attempt: Attempt) -> Outcome:
        """Run the attempt and return its outcome; failures of user code are outcomes too."""
        crash.reach("attempt_taken")
        need: Need | None = None
        try:
            granted = attempt.granted = self._known(attempt.request) or await self._read(attempt)
            need = self._needs.known(attempt.request, granted)
            alone = attempt.alone
            warm = None if need is None else self._pool.acquire_open(need.key, alone=alone)
            if warm is None:
                known = need is not None and self._needs.stands(need)
                if need is None or not known:
                    need = await self._needs.make(attempt.request, granted)
                if alone:
                    need = replace(need, alone=True)
                warm = await (self._pool.wait(need) if known else self._pool.acquire(need))
        except Refused as refused:
            return Outcome(error=refused.error)
        except (LoadFailed, SandboxDied) as problem:
            return outcome_without_one(attempt, problem)
        finally:
            if need is not None and need.row is not None and not need.row.taken:
                need.row.ended("removed")  # another sandbox served the call
        assert need is not None, "an interpreter is for a need"
        attempt.warm = warm
        attempt.container_id = warm.container_id
        outcome: Outcome | None = None
        try:
            if warm.key.reuse.apart:
                await self._loader.prepare(warm, need)
            outcome = await self._call(attempt, warm, need.carries)
        except LoadFailed as failed:
            stdout, stderr = failed.printed
            error = told_error(attempt) if attempt.told else failed.error
            return Outcome(error=error, stdout_tail=stdout, stderr_tail=stderr)
        else:
            return outcome
        finally:
            give_back(self._pool, attempt, outcome)

    def tell_to_end(self, attempt: Attempt, why: str, *, grace_s: float) -> None:
        """Stop an attempt and its sandbox; only the first reason counts."""
        if not attempt.told:
            attempt.told = why
            attempt.grace_s = grace_s
        if attempt.warm is not None:
            killing = asyncio.ensure_future(self._end(attempt, attempt.warm, grace_s=grace_s))
            self._killing.add(killing)
            killing.add_done_callback(self._killing.discard)
        elif attempt.leave is not None:
            attempt.leave()
        elif attempt.task is not None and why == "killed":
            attempt.task.cancel()

    async def key_of(self, request: AttemptRequest) -> WarmKey | None:
        """Return the key of a request's interpreter; None if the node version does not exist."""
        return await self._needs.key_of(request)

    async def _end(self, attempt: Attempt, warm: Warm, *, grace_s: float) -> None:
        """End the call; in a shared interpreter cancel only its task first, and retire that."""
        talk = attempt.talk
        if talk is not None:
            self._pool.retire(warm)
            talk.cancel()
            await asyncio.wait((talk.answered,), timeout=max(grace_s, self._grace_s))
            if talk.answered.done():
                return
            grace_s = 0.0
        await self._pool.kill(warm, grace_s=grace_s)

    def _known(self, request: AttemptRequest) -> Granted | None:
        if self._secrets is None:
            return NOTHING_GRANTED
        return self._secrets.known(request.tenant_id, request.node_version_id)

    async def _read(self, attempt: Attempt) -> Granted:
        assert self._secrets is not None, "without secrets nothing is granted"
        request = attempt.request
        try:
            return await self._secrets.read(request.tenant_id, request.node_version_id)
        except SecretsRefused as refused:
            raise Refused(environment_error(str(refused), retryable=False)) from None

    # -- the call

    async def _call(self, attempt: Attempt, warm: Warm, carries: Carries) -> Outcome:
        began = time.monotonic()
        request = attempt.request
        if attempt.told:
            return Outcome(error=told_error(attempt), recycle="told to end")
        try:
            inputs, body = await self._inputs(request, warm.key.limits.memory_bytes)
        except FileCorruptError as problem:
            return Outcome(error=environment_error(f"an input cannot be read: {problem}"))
        except InputTooLarge:
            limit = warm.key.limits.memory_bytes // MIB
            message = f"out of memory: the inputs alone take more than the limit, {limit} MiB"
            return Outcome(error=AttemptError(type=ErrorType.OOM, message=message, retryable=False))
        attempt.moved_bytes = len(body)
        header = self._calls.header(attempt, warm, inputs)
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
        """Lend the call its files, and remove them afterwards, whatever its outcome."""
        header, body = frame
        try:
            lent = await self._carried.lend(
                attempt.request, warm.sandbox, carries, _texts(header["inputs"], body)
            )
        except NotCarried as refused:
            return Outcome(error=refused.error)
        attempt.moved_bytes += lent.size_bytes
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
        talk: Talk = warm.sandbox
        if warm.shared is not None:
            talk = attempt.talk = warm.shared.begin()
        self._calls.open(attempt, talk, began)
        try:
            reply = await talk.request(
                header,
                body,
                reply_bytes_max=warm.key.limits.output_bytes + REPLY_BYTES_MORE,
                descriptors_max=0 if lent is None else lent.descriptors_max,
            )
        except SandboxDied as died:
            return self._calls.died(attempt, warm, talk, died)
        finally:
            self._calls.close(attempt)
        outcome = await self._calls.answered(attempt, warm, talk, reply)
        if lent is not None:
            outcome = await self._with_files(attempt, warm, lent, reply, outcome)
        if warm.shared is not None:
            warm.unproven = 0 if reply.header.get("quiet") is True else warm.unproven + 1
            if warm.unproven >= _UNPROVEN_MAX and not outcome.recycle:
                return outcome._replace(recycle="unproven")
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
            taken_bytes = await self._carried.take(attempt.request, warm.sandbox, lent, reply)
        except NotCarried as refused:
            return outcome._replace(error=refused.error, outputs=())
        attempt.moved_bytes += taken_bytes
        attempt.transfer_us += round((time.monotonic() - began) * 1_000_000)
        return outcome

    def _overdue(self, attempt: Attempt, why: str) -> None:
        self.tell_to_end(attempt, why, grace_s=self._grace_s)

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


def _texts(entries: Sequence[Sequence[Any]], body: bytes) -> list[tuple[str, bytes]]:
    """Split the body of a call into its inputs again."""
    texts = []
    offset = 0
    for name, length, _ in entries:
        texts.append((name, body[offset : offset + length]))
        offset += length
    return texts
