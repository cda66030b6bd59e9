"""Floors: what the machine itself takes for the parts that no engine can leave out."""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import time
from typing import Any, Final

import asyncpg
import grpc
import psutil

_ROUNDS: Final = 400
_ANSWERS: Final = 8_000
_ANSWERS_AT_ONCE: Final = 32
_INSERT: Final = "INSERT INTO bench_floor VALUES ($1, $2)"
_SERVE: Final = """
import asyncio, sys, grpc, uvloop
async def echo(requests, context):
    async for request in requests:
        yield request
async def main():
    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(echo)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bench.Floor", {"Echo": handler}),)
    )
    server.add_insecure_port(sys.argv[1])
    await server.start()
    print("serving", flush=True)
    await server.wait_for_termination()
uvloop.run(main())
"""
_ANSWER: Final = """
import asyncio, sys, grpc, uvloop
async def main():
    answer = bytes(int(sys.argv[2]))
    async def say(request, context):
        return answer
    server = grpc.aio.server()
    handlers = {"Say": grpc.unary_unary_rpc_method_handler(say)}
    handler = grpc.method_handlers_generic_handler("bench.Floor", handlers)
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(sys.argv[1])
    await server.start()
    print("serving", flush=True)
    await server.wait_for_termination()
uvloop.run(main())
"""
_ECHO: Final = """
import os, socket, sys
s = socket.socket(fileno=int(sys.argv[1]))
while (data := s.recv(4096)):
    s.sendall(data)
"""


async def transactions_per_s(database_url: str) -> float:
    """Durable transactions (BEGIN, one single-row INSERT, COMMIT) per second by one client."""
    db = await _prepared(database_url)
    try:
        insert = await db.prepare(_INSERT)
        spans = []
        for number in range(_ROUNDS + 50):
            begin = time.perf_counter()
            async with db.transaction():
                await insert.fetch(number, "x" * 60)
            spans.append(time.perf_counter() - begin)
        return 1 / statistics.median(spans[50:])
    finally:
        await _finished(db)


async def commit_ms(database_url: str) -> float:
    """Median of one durable commit: a single-row INSERT as a statement of its own."""
    db = await _prepared(database_url)
    try:
        insert = await db.prepare(_INSERT)
        spans = []
        for number in range(_ROUNDS + 50):
            begin = time.perf_counter()
            await insert.fetch(number, "x" * 60)
            spans.append((time.perf_counter() - begin) * 1000)
        return statistics.median(spans[50:])
    finally:
        await _finished(db)


async def _prepared(database_url: str) -> asyncpg.Connection[asyncpg.Record]:
    db = await asyncpg.connect(database_url)
    assert await db.fetchval("SHOW fsync") == "on"
    assert await db.fetchval("SHOW synchronous_commit") == "on"
    await db.execute("CREATE TABLE IF NOT EXISTS bench_floor (id bigint, note text)")
    return db


async def _finished(db: asyncpg.Connection[asyncpg.Record]) -> None:
    await db.execute("DROP TABLE bench_floor")
    await db.close()


def process_ms() -> float:
    """Median of one round trip over a socket to a warm Python process."""
    mine, theirs = socket.socketpair()
    with mine, theirs:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _ECHO, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        spans = []
        for _ in range(_ROUNDS + 50):
            begin = time.perf_counter()
            mine.sendall(b"x" * 200)
            mine.recv(4096)
            spans.append((time.perf_counter() - begin) * 1000)
        mine.close()
        child.wait(10)
    return statistics.median(spans[50:])


async def stream_ms() -> float:
    """Median of one round trip over a held grpc.aio stream to another process, by unix socket."""
    path = f"unix:/tmp/qflow-bench-{os.getpid()}.sock"
    command = [sys.executable, "-c", _SERVE, path]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: ASYNC220  # nothing waits yet
    assert child.stdout is not None
    try:
        child.stdout.readline()  # it serves
        spans = []
        async with grpc.aio.insecure_channel(path) as channel:
            call: Any = channel.stream_stream("/bench.Floor/Echo")()
            for _ in range(_ROUNDS + 50):
                begin = time.perf_counter()
                await call.write(b"x" * 200)
                await call.read()
                spans.append((time.perf_counter() - begin) * 1000)
            call.cancel()
    finally:
        child.terminate()
        child.wait(10)
        child.stdout.close()
    return statistics.median(spans[50:])


async def answers_per_s(size: int) -> float:
    """Count the calls that a bare grpc.aio server answers in a second of its own time."""
    path = f"unix:/tmp/qflow-bench-{os.getpid()}.sock"
    command = [sys.executable, "-c", _ANSWER, path, str(size)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: ASYNC220  # nothing waits yet
    assert child.stdout is not None
    try:
        child.stdout.readline()  # it serves
        server = psutil.Process(child.pid)
        async with grpc.aio.insecure_channel(path) as channel:
            call: Any = channel.unary_unary("/bench.Floor/Say")

            async def some() -> None:
                for _ in range(_ANSWERS // _ANSWERS_AT_ONCE):
                    await call(b"x")

            await some()
            before = sum(server.cpu_times()[:2])
            await asyncio.gather(*(some() for _ in range(_ANSWERS_AT_ONCE)))
            return _ANSWERS / (sum(server.cpu_times()[:2]) - before)
    finally:
        child.terminate()
        child.wait(10)
        child.stdout.close()


async def node_ms(database_url: str) -> dict[str, float]:
    """Measure the floor of a durable node in a warm process of its own: commit, process, stream."""
    parts = {
        "commit_ms": await commit_ms(database_url),
        "process_ms": await asyncio.to_thread(process_ms),
        "stream_ms": await stream_ms(),
    }
    return {name: round(value, 4) for name, value in parts.items()}
