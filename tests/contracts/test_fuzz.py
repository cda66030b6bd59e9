"""Messages that were mutated, to every RPC: whatever comes, no server fails, hangs or grows."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import os
import random
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from qflow.auth.v1 import auth_pb2

from tests import factories
from tests.contracts.test_every_rpc import Rpc, every_rpc
from tests.support.suite import Suite

# QFLOW_TEST_FUZZ=1000000 sends a million; QFLOW_TEST_FUZZ_SEED chooses others.
_MESSAGES = int(os.environ.get("QFLOW_TEST_FUZZ") or 50_000)
pytestmark = [pytest.mark.timeout(900 + _MESSAGES // 50), pytest.mark.slow]
_SEED = int(os.environ.get("QFLOW_TEST_FUZZ_SEED") or 20_261_126)
_AT_ONCE = 24
_CALL_S = 30.0
_SILENT_S = 0.25
_DEPTH_MAX = 3
_LEFT_UNSET = 0.45
_GROWTH_MAX = 1.10
_GROWTH_FROM = 200_000  # before that, caches with bounds are still being filled
_TEXTS = (
    *("", "a", "0", "-1", "..", "../../etc/passwd", "%", "_", "'; DROP TABLE users; --"),
    *("\0", "\u202e", "é" * 200, "a" * 5_000, "{}", "[]", "null", "NaN", "1e999", "* * * * *"),
    *('{"a":' * 70 + "1" + "}" * 70, '{"t":"list","of":{"t":"int"}}', "status = x AND"),
    *("00000000-0000-0000-0000-000000000000", "0190d6c1-5f2e-7c3a-9d5b-1f0e2d3c4b5a"),
    *("name:(a OR", "def f(x: int) -> int:\n    return x\n", "def f("),
)
_NUMBERS = (0, 1, -1, 2, 100, 2**31 - 1, -(2**31), 2**53 + 1, 2**63 - 1, -(2**63))
_UNSIGNED = tuple(each for each in _NUMBERS if 0 <= each < 2**32)
_VALUES: dict[int, tuple[Any, ...]] = {
    FieldDescriptor.CPPTYPE_BOOL: (True, False),
    FieldDescriptor.CPPTYPE_ENUM: (0, 1, 2, 3, 99, -1),
    FieldDescriptor.CPPTYPE_DOUBLE: (0.0, -1.0, 1e308, float("nan"), float("inf")),
    FieldDescriptor.CPPTYPE_FLOAT: (0.0, -1.0, float("nan"), float("inf")),
    FieldDescriptor.CPPTYPE_INT32: tuple(n for n in _NUMBERS if -(2**31) <= n < 2**31),
    FieldDescriptor.CPPTYPE_INT64: _NUMBERS,
}
_FAULTS = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS}
# Calls that only the calling user's own state bears, which other calls here go on needing.
_CROSSED, _CROSSED_MAX = "Internal error from Core", 10
_LEFT_OUT = re.compile(r"/(SignOut|RevokeAllSessions|RevokeSession|DeactivateUser|AnonymizeUser)$")


def filled(message: Message, chance: random.Random, depth: int = 0) -> Message:
    """Set some fields of a message to what their types allow, likely or not."""
    for each in message.DESCRIPTOR.fields:
        if chance.random() < _LEFT_UNSET:
            continue
        count = chance.choice((1, 1, 2, 5)) if each.is_repeated else 1
        for _ in range(count):
            _fill(message, each, chance, depth)
    return message


def _fill(message: Any, each: Any, chance: random.Random, depth: int) -> None:
    if each.message_type is not None:
        if each.message_type.GetOptions().map_entry or depth >= _DEPTH_MAX:
            return
        inner = getattr(message, each.name)
        filled(inner.add() if each.is_repeated else inner, chance, depth + 1)
        if not each.is_repeated:
            inner.SetInParent()
        return
    value = _value(each, chance)
    if each.is_repeated:
        getattr(message, each.name).append(value)
    else:
        setattr(message, each.name, value)


def _value(of: Any, chance: random.Random) -> Any:
    if of.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        text = chance.choice(_TEXTS)
        return text.encode() if of.type == FieldDescriptor.TYPE_BYTES else text
    return chance.choice(_VALUES.get(of.cpp_type, _UNSIGNED))


def mutated(raw: bytes, chance: random.Random) -> bytes:
    """Damage the bytes of a message, or leave them."""
    kind = chance.randrange(6)
    if kind == 0 and raw:
        return raw[: chance.randrange(len(raw))]
    if kind == 1 and raw:
        at = chance.randrange(len(raw))
        return raw[:at] + chance.randbytes(1) + raw[at + 1 :]
    if kind == 2:
        return raw + chance.randbytes(chance.randrange(20))
    return raw


@functools.cache
def request_of(path: str) -> type[Any]:
    full_name, name = path.strip("/").split("/")
    package, _, service = full_name.rpartition(".")
    module = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", service).lower()
    made: type[Any] = getattr(importlib.import_module(f"{package}.{module}_pb2"), f"{name}Request")
    return made


@dataclass
class Fuzzing:
    """Sends mutated messages, many at once, and keeps what went wrong."""

    rpcs: list[Rpc]
    tokens: list[str]
    seed: int
    faults: list[str] = field(default_factory=list)
    channels: dict[str, grpc.aio.Channel] = field(default_factory=dict)
    calls: dict[str, Callable[..., Any]] = field(default_factory=dict)
    took_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    sent: Counter[str] = field(default_factory=Counter)
    refused_ms: list[float] = field(default_factory=list)

    def told(self) -> str:
        """Say what the time went to: how long whoever sent them waited for answers."""
        slowest = sorted(self.took_s, key=self.took_s.__getitem__, reverse=True)[:15]
        lines = [
            f"{self.took_s[each]:8.1f} s {self.sent[each]:6} {each.rpartition('.')[2]}"
            for each in slowest
        ]
        return "\n".join([f"{self.sent.total()} messages", *lines])

    async def close(self) -> None:
        """Close the channels."""
        for channel in self.channels.values():
            await channel.close()

    async def many(self, count: int) -> None:
        """Send so many messages: each sender its own, whatever the others wait for."""
        chances = [random.Random(f"{self.seed} {each}") for each in range(_AT_ONCE)]
        self.seed += 1
        async with asyncio.TaskGroup() as tasks:
            for chance in chances:
                tasks.create_task(self._some(count // _AT_ONCE, chance))

    async def one_by_one(self, count: int) -> None:
        """Send so many messages, each once the one before it was answered."""
        await self._some(count, random.Random(self.seed))

    async def _some(self, count: int, chance: random.Random) -> None:
        for rpc in chance.choices(self.rpcs, k=count):
            raw = filled(request_of(rpc.path)(), chance).SerializeToString()
            await self._one(rpc, mutated(raw, chance), chance.choice(self.tokens))

    def _call(self, rpc: Rpc) -> Callable[..., Any]:
        if rpc.path not in self.calls:
            if rpc.address not in self.channels:
                self.channels[rpc.address] = grpc.aio.insecure_channel(rpc.address)
            self.calls[rpc.path] = getattr(self.channels[rpc.address], rpc.kind)(rpc.path)
        return self.calls[rpc.path]

    async def _one(self, rpc: Rpc, raw: bytes, token: str) -> None:
        for _ in range(_CROSSED_MAX):
            if not await self._is_crossed(rpc, raw, token):
                return
        self.faults.append(f"{rpc.path} is never heard {raw!r}")

    async def _is_crossed(self, rpc: Rpc, raw: bytes, token: str) -> bool:
        """Send a message, and note what is wrong with its answer; true where none was heard.

        That is where the end of a call crosses what is being written to it: the client itself says
        INTERNAL then, in words of its own.
        """
        asked: Any = iter([raw]) if rpc.kind.startswith("stream") else raw
        began = time.monotonic()
        call = self._call(rpc)(
            asked, metadata=[("authorization", f"Bearer {token}")], timeout=_CALL_S
        )
        try:
            if rpc.kind.endswith("unary"):
                async with asyncio.timeout(2 * _CALL_S):
                    await call
            else:  # one that has nothing to say yet waits for it, and may
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_SILENT_S):
                        await call.read()
        except grpc.aio.AioRpcError as error:
            if error.details() == _CROSSED:
                return True
            self.refused_ms.append((time.monotonic() - began) * 1000)
            if error.code() in _FAULTS or leaks(error.details() or ""):
                self.faults.append(f"{rpc.path} {error.code().name} {error.details()} {raw!r}")
        except TimeoutError:
            self.faults.append(f"{rpc.path} hung {raw!r}")
        finally:
            call.cancel()
            self.took_s[rpc.path] += time.monotonic() - began
            self.sent[rpc.path] += 1
        return False


async def fuzzing_of(suite: Suite) -> Fuzzing:
    """Give what sends messages to all RPCs of a suite that users may call."""
    with suite.sql() as sql:
        tokens = [factories.user(sql, role=role).token for role in ("user", "admin", "viewer")]
    rpcs = [
        rpc
        for rpc in await every_rpc(suite)
        if {*rpc.rule.audiences} != {auth_pb2.AUDIENCE_SERVICE} and not _LEFT_OUT.search(rpc.path)
    ]
    return Fuzzing(rpcs, tokens, _SEED)


async def test_no_mutated_message_makes_a_server_fail(suite: Suite) -> None:
    """E17, E18, E19: no UNKNOWN, INTERNAL, crash, hang, growth, or word of what went on inside."""
    fuzzing = await fuzzing_of(suite)
    before = {name: mark for name, mark in suite.marks().items() if name in _WATCHED}
    await fuzzing.many(_MESSAGES // 2)
    assert before == {name: mark for name, mark in suite.marks().items() if name in _WATCHED}
    half = {name: resident(mark.pid) for name, mark in before.items()}
    await fuzzing.many(_MESSAGES // 2)
    await fuzzing.close()
    sys.stderr.write(f"{fuzzing.told()}\n")  # shown of a test that failed, and with -s
    assert not fuzzing.faults, "\n".join(fuzzing.faults[:20])
    assert before == {name: mark for name, mark in suite.marks().items() if name in _WATCHED}
    grown = {name: resident(mark.pid) / half[name] for name, mark in before.items()}
    assert _MESSAGES < _GROWTH_FROM or max(grown.values()) <= _GROWTH_MAX, grown


_WATCHED = ("registry", "orchestrator", "runner", "telemetry")
_INSIDE = ("Traceback", "asyncpg", "psycopg", 'File "', "site-packages", "postgresql://", "qflow_")


def leaks(text: str) -> bool:
    """Whether a message tells of what is inside."""
    return any(word in text for word in _INSIDE)


def resident(pid: int) -> int:
    """The memory of a process, in kilobytes."""
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1])  # type: ignore[index]
