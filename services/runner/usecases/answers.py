"""Reading the replies of agents, which are untrusted."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Final

import msgspec
from qflow.types.values import ValueTextError, parse_strict

from services.runner.domain.outcome import (
    INLINE_BYTES_MAX,
    NO_USAGE,
    AttemptError,
    ErrorType,
    Outcome,
    Usage,
)
from services.runner.gateways.sandbox.port import Reply, Talk
from services.runner.usecases.attempt import Attempt, told_error
from services.runner.usecases.warm import Warm, error_from

# Larger texts are checked in a thread, so that one call does not hold up the others.
CHECK_INLINE_BYTES: Final = 16 * 1024
# Texts that are strict JSON at a glance: most results of small functions.
_PLAIN: Final = re.compile(rb'-?(?:0|[1-9][0-9]{0,17})|true|false|null|"[ !#-\[\]-~]{0,256}"')
_skip: Final = msgspec.json.Decoder(msgspec.Raw).decode


def answer_of(attempt: Attempt, warm: Warm, talk: Talk, reply: Reply) -> Outcome:
    """Return the outcome that a reply reports; its outputs are not yet proven to be JSON."""
    header = reply.header
    stdout, stderr = talk.output_tails()
    recycle = str(header.get("recycle") or "")[:100]
    error: AttemptError | None = None
    outputs: Sequence[tuple[str, bytes]] = ()
    if attempt.told:
        error, recycle = told_error(attempt), recycle or "told to end"
    elif header.get("op") != "result" or header.get("id") != attempt.request.token:
        error = AttemptError(type=ErrorType.EXITED, message="the agent sent an unexpected response")
        recycle = "out of turn"
    elif "error" in header:
        error = attempt.granted.mask.error(error_from(header["error"]))
        # A call with a process of its own took only that down, so the sandbox can be kept.
        if error.type in {ErrorType.EXITED, ErrorType.OOM} and not warm.key.reuse.apart:
            recycle = recycle or error.type.value
    else:
        try:
            outputs = cut_outputs(header.get("outputs"), reply.body, attempt.request.outputs)
        except ValueTextError as problem:
            error = _not_json(problem)
    return Outcome(
        outputs,
        error,
        usage_from(header.get("usage")),
        stdout,
        stderr,
        recycle,
        "" if error is None else progress_of(attempt),
    )


def proven_at_once(attempt: Attempt, outcome: Outcome) -> Outcome:
    """Verify small outputs of a call without secrets; see `proven`."""
    try:
        _read_strictly(outcome.outputs)
    except ValueTextError as problem:
        return _refused(attempt, outcome, problem)
    return outcome


async def proven(attempt: Attempt, outcome: Outcome) -> Outcome:
    """Mask secrets in outputs, and verify that they are JSON: user code may have forged them."""
    outputs = outcome.outputs
    if not outputs:
        return outcome
    try:
        if mask := attempt.granted.mask:
            outputs = await asyncio.to_thread(mask.outputs, outputs)
        await check_outputs(outputs)
    except ValueTextError as problem:
        return _refused(attempt, outcome, problem)
    return outcome._replace(outputs=outputs)


def progress_of(attempt: Attempt) -> str:
    """Return the last progress that a failed attempt reported."""
    return "" if attempt.pulse is None else attempt.pulse.progress()


def _refused(attempt: Attempt, outcome: Outcome, problem: ValueTextError) -> Outcome:
    return outcome._replace(outputs=(), error=_not_json(problem), progress=progress_of(attempt))


def _not_json(problem: ValueTextError) -> AttemptError:
    return AttemptError(type=ErrorType.SERIALIZATION, message=str(problem)[:1000])


def cut_outputs(entries: object, body: bytes, wanted: Sequence[str]) -> list[tuple[str, bytes]]:
    """Split the body into the wanted outputs, in their order; raises ValueTextError."""
    match entries:
        case [[str(name), int(length)]] if [name] == wanted and length == len(body):
            return [(name, body)]  # true for most nodes
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


async def check_outputs(outputs: Sequence[tuple[str, bytes]]) -> None:
    """Verify that what left the sandbox is JSON: user code may have forged it.

    What is stored in rows is parsed strictly. What is stored as a file, perhaps tens of megabytes,
    is only skimmed, without building its values: a consumer parses it strictly inside its sandbox.
    """
    size = sum(len(text) for _, text in outputs)
    if size <= CHECK_INLINE_BYTES:
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


def usage_from(found: object) -> Usage:
    """Parse the usage that an agent reports; invalid numbers count as 0."""
    if not isinstance(found, dict):
        return NO_USAGE
    read, write = 0, 0
    match found.get("io"):
        case [int(read), int(write)]:
            read, write = _count(read), _count(write)
    return Usage(
        _count(found.get("cpu_us")),
        _count(found.get("max_rss_kb")) * 1024,
        _count(found.get("wall_us")),
        _count(found.get("serialization_us")),
        read,
        write,
    )


def usage_of_dead(warm: Warm, wall_s: float) -> Usage:
    """Return the usage of an attempt whose agent died, from its control group.

    The memory peak is that of the sandbox's whole life: if it ran out of memory, this was the peak.
    """
    used = warm.sandbox.usage()
    # Concurrent calls share it evenly.
    cpu_us = max(0, used.cpu_us - warm.cpu_base_us - warm.cpu_us) // max(1, warm.calls)
    warm.cpu_us += cpu_us
    warm.memory_peak_bytes = max(warm.memory_peak_bytes, used.memory_peak_bytes)
    return Usage(
        cpu_us=cpu_us,
        memory_peak_bytes=used.memory_peak_bytes,
        wall_us=round(wall_s * 1_000_000),
    )


def _count(value: object) -> int:
    return min(value, 2**50) if isinstance(value, int) and value > 0 else 0
