from __future__ import annotations

import asyncio
import os
import sys

import grpc
import pytest
import uvloop

from services.kit import child
from services.kit.child import Finished, OutputTooLargeError
from services.standalone.process import ProcessMark, wait_until

ENV = {"LC_ALL": "C.UTF-8"}


async def run(program: str, stdin: bytes = b"", **limits: float) -> Finished:
    return await child.run(
        [sys.executable, "-I", "-S", "-c", program],
        stdin=stdin,
        env=ENV,
        timeout_s=limits.get("timeout_s", 15.0),
        output_bytes_max=int(limits.get("output_bytes_max", 1 << 24)),
        keep_stderr=True,
    )


async def test_a_child_reads_its_input_and_is_read_to_its_end() -> None:
    echo = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read()); sys.stderr.write('e')"
    data = os.urandom(3_000_000)  # far more than pipes hold, both ways at once
    assert await run(echo, data) == Finished(0, data, b"e")


async def test_a_child_that_reads_nothing_and_fails_gives_its_code() -> None:
    assert await run("import sys; sys.exit(7)", b"x" * 1_000_000) == Finished(7, b"", b"")


async def test_a_child_that_takes_too_long_is_ended() -> None:
    with pytest.raises(TimeoutError):  # long before the child would end, or the test's own time
        await run("import time; time.sleep(600)", timeout_s=0.2)


async def test_a_child_that_writes_too_much_is_ended() -> None:
    with pytest.raises(OutputTooLargeError):
        await run("while True: print('x' * 1000)", output_bytes_max=10_000)


async def test_nothing_that_a_child_leaves_in_its_group_outlives_the_call() -> None:
    program = (
        "import subprocess, sys\n"
        "left = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],\n"
        "                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "print(left.pid)\n"
    )
    left = int((await run(program)).stdout)
    assert wait_until(lambda: ProcessMark.of(left) is None, timeout_s=30.0)


async def test_a_program_that_is_not_there_is_an_os_error() -> None:
    with pytest.raises(FileNotFoundError):
        await child.run(["/no/such"], stdin=b"", env=ENV, timeout_s=5.0, output_bytes_max=1)


def test_children_of_a_grpc_server_on_uvloop_never_crash() -> None:
    """Between fork and exec nothing of Python may run: gRPC's threads are gone there."""

    async def main() -> set[int]:
        server = grpc.aio.server()
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await channel.channel_ready()
            codes = {(await run("pass")).code for _ in range(60)}
        await server.stop(0)
        return codes

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) == {0}
