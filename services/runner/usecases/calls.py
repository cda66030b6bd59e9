"""What all calls of agents share: frame, log, heartbeat, deadline and end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from services.kit import crash
from services.kit.deadlines import Deadlines
from services.runner.domain.attempts import AttemptRequest
from services.runner.domain.moments import moment_text
from services.runner.domain.outcome import Outcome
from services.runner.domain.pulse import Pulse
from services.runner.gateways.sandbox.port import Reply, SandboxDied, Talk
from services.runner.usecases.answers import (
    answer_of,
    progress_of,
    proven,
    proven_at_once,
    usage_of_dead,
)
from services.runner.usecases.attempt import Attempt, died_error, environment_error
from services.runner.usecases.granted_secrets import Granted
from services.runner.usecases.interpreters import InterpreterPool
from services.runner.usecases.node_logs import NodeLogs
from services.runner.usecases.trace import place_of
from services.runner.usecases.warm import LoadFailed, Warm

REPLY_BYTES_MORE: Final = 4096  # than the outputs: the JSON around them

TellToEnd = Callable[[Attempt, str], None]


class Calls:
    """Begins and ends calls, with and without tasks."""

    def __init__(self, logs: NodeLogs, tell_to_end: TellToEnd) -> None:
        """`tell_to_end` is called for calls that exceed their timeout or miss heartbeats."""
        self._logs = logs
        self._tell_to_end = tell_to_end
        self._deadlines = Deadlines[Attempt](lambda attempt: tell_to_end(attempt, "timeout"))

    def header(self, attempt: Attempt, warm: Warm, inputs: Sequence[Any]) -> dict[str, Any]:
        """Return the header of the frame that begins a call."""
        request = attempt.request
        header = {
            "op": "call",
            "id": request.token,
            "inputs": inputs,
            "output_bytes_max": warm.key.limits.output_bytes,
            "context": _context(request, attempt.granted),
            "log_room": self._logs.caps.bytes_max,
        }
        if warm.key.reuse.apart:
            header["version"] = str(request.node_version_id)
        return header

    def open(self, attempt: Attempt, talk: Talk, began_s: float) -> None:
        """Start the log, the heartbeats and the timeout of a call; it is sent next."""
        request = attempt.request
        attempt.written = written = self._logs.open(request)
        attempt.asked_s = now_s = time.monotonic()
        attempt.transfer_us = round((now_s - began_s) * 1_000_000)
        attempt.pulse = pulse = Pulse(request.heartbeat_timeout_s, now_s=now_s)
        talk.begin_output(
            written,
            lambda said: pulse.beat(said, now_s=time.monotonic()),
            attempt.granted.mask,
        )
        self._deadlines.begin(attempt, now_s + request.timeout_s)
        if pulse.timeout_s:
            attempt.watch = asyncio.create_task(self._watch(attempt, pulse))

    def close(self, attempt: Attempt) -> None:
        """Stop the timers of a call that was answered or given up."""
        self._deadlines.end(attempt)
        if attempt.watch is not None:
            attempt.watch.cancel()
            attempt.watch = None

    def ended(self, attempt: Attempt, found: Reply | SandboxDied) -> Outcome:
        """Return the outcome of a call alone in its interpreter, whose outputs are small."""
        warm = attempt.warm
        assert warm is not None, "it has one until it is given back"
        self.close(attempt)
        if isinstance(found, SandboxDied):
            return self.died(attempt, warm, warm.sandbox, found)
        crash.reach("attempt_answered")
        outcome = proven_at_once(attempt, answer_of(attempt, warm, warm.sandbox, found))
        return self._counted(attempt, warm, outcome)

    async def answered(self, attempt: Attempt, warm: Warm, talk: Talk, reply: Reply) -> Outcome:
        """Return the outcome of any call that was answered."""
        self.close(attempt)
        crash.reach("attempt_answered")
        outcome = await proven(attempt, answer_of(attempt, warm, talk, reply))
        return self._counted(attempt, warm, outcome)

    def died(self, attempt: Attempt, warm: Warm, talk: Talk, died: SandboxDied) -> Outcome:
        """Return the outcome of a call whose sandbox died."""
        self.close(attempt)
        stdout, stderr = talk.output_tails()
        if attempt.written is not None:
            attempt.written.close()
        if attempt.talk is not None and attempt.talk.met and not attempt.told:
            return Outcome(again=True, recycle="died")
        return Outcome(
            error=died_error(attempt, died),
            usage=usage_of_dead(warm, time.monotonic() - attempt.asked_s),
            stdout_tail=stdout,
            stderr_tail=stderr,
            recycle="died",
            progress=progress_of(attempt),
        )

    def _counted(self, attempt: Attempt, warm: Warm, outcome: Outcome) -> Outcome:
        if attempt.written is not None:
            attempt.written.close()
        warm.add(outcome.usage)
        return outcome

    async def _watch(self, attempt: Attempt, pulse: Pulse) -> None:
        """End an attempt whose heartbeats stop."""
        while (left_s := pulse.due_s() - time.monotonic()) > 0:  # noqa: ASYNC110  # beats move it
            await asyncio.sleep(left_s)
        self._tell_to_end(attempt, "silent")


def give_back(pool: InterpreterPool, attempt: Attempt, outcome: Outcome | None) -> None:
    """Release a call's interpreter; it is recycled if the outcome says so, or is unknown."""
    warm = attempt.warm
    assert warm is not None, "it is given back once"
    attempt.warm = attempt.talk = None
    warm.row.used(warm.usage)
    recycle = outcome is None or bool(outcome.recycle)
    worked_s = None if outcome is None or recycle else outcome.usage.worked_s
    pool.release(warm, recycle=recycle, worked_s=worked_s)


def outcome_without_one(attempt: Attempt, problem: Exception) -> Outcome:
    """Return the outcome of an attempt that got no interpreter."""
    if isinstance(problem, LoadFailed):
        attempt.container_id = problem.container_id
        stdout, stderr = problem.printed
        return Outcome(error=problem.error, stdout_tail=stdout, stderr_tail=stderr)
    return Outcome(error=environment_error(str(problem)))


def _context(request: AttemptRequest, granted: Granted) -> dict[str, str]:
    told = {
        "QFLOW_RUN_ID": str(request.execution_id),
        "QFLOW_NODE_ID": request.node_id,
        "QFLOW_ATTEMPT": str(request.attempt),
        "QFLOW_IDEMPOTENCY_KEY": str(request.attempt_ref),  # the same for every attempt of the node
        "QFLOW_DEADLINE": moment_text(time.time() + request.timeout_s),
    }
    if request.traceparent:  # the variable that tracing libraries read
        told["TRACEPARENT"] = place_of(request)
    if request.progress:
        told["QFLOW_PROGRESS"] = request.progress
    if granted.variables:
        told |= granted.variables
    return told
