"""Short-lived child processes of a service, with bounded time and output, ended as a group.

Not `asyncio.create_subprocess_exec`: uvloop's own version forks and runs Python before exec, which
with gRPC's threads ends in SIGSEGV about one time in ten. `Popen` does vfork and exec in C.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

_CHUNK_BYTES: Final = 1 << 16


class OutputTooLargeError(Exception):
    """A child wrote more than it may; it was killed."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The exit code and output of a child."""

    code: int
    stdout: bytes
    stderr: bytes


async def run(
    argv: Sequence[str],
    *,
    stdin: bytes,
    env: Mapping[str, str],
    timeout_s: float,
    output_bytes_max: int,
    cwd: str | Path = os.sep,
    keep_stderr: bool = False,
    umask: int = -1,
    pass_fds: Sequence[int] = (),
) -> Finished:
    """Run a program to its end; nothing of its process group outlives the call.

    Raises TimeoutError, OutputTooLargeError, or OSError if the program cannot be started.
    """
    process = subprocess.Popen(  # noqa: S603, ASYNC220  # callers pass no user input as argv
        list(argv),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if keep_stderr else subprocess.DEVNULL,
        env=dict(env),
        cwd=cwd,
        umask=umask,
        pass_fds=pass_fds,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(timeout_s):
            await _feed(process.stdin, stdin)
            stdout, stderr, _ = await asyncio.gather(
                _read(process.stdout, process, output_bytes_max),
                _read(process.stderr, process, output_bytes_max),
                _ended(process),
            )
    finally:
        if process.returncode is None:
            _end_group(process)
            await asyncio.shield(_ended(process))
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    if max(len(stdout), len(stderr)) > output_bytes_max:
        raise OutputTooLargeError(f"more than {output_bytes_max} bytes")
    assert process.returncode is not None
    return Finished(process.returncode, stdout, stderr)


async def over(process: subprocess.Popen[bytes]) -> None:
    """Wait until a child has exited, without a thread and without polling; does not reap it."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    descriptor = os.pidfd_open(process.pid)
    try:
        loop.add_reader(descriptor, ended.set)
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def _feed(pipe: IO[bytes] | None, data: bytes) -> None:
    """Write the input in the background, while the output is read."""
    assert pipe is not None
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, pipe)
    # If the child has died already, its exit code says so.
    with contextlib.suppress(OSError, RuntimeError):
        transport.write(data)
    transport.close()


async def _read(pipe: IO[bytes] | None, process: subprocess.Popen[bytes], bytes_max: int) -> bytes:
    """Read to the end; kills the child when it exceeds the limit."""
    if pipe is None:
        return b""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=_CHUNK_BYTES, loop=loop)
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader, loop=loop), pipe
    )
    try:
        data = bytearray()
        while len(data) <= bytes_max and (chunk := await reader.read(_CHUNK_BYTES)):
            data += chunk
        if len(data) > bytes_max:
            _end_group(process)
        return bytes(data)
    finally:
        transport.close()


async def _ended(process: subprocess.Popen[bytes]) -> None:
    """Wait for the exit, kill the rest of the group, and only then reap, which frees the pid."""
    await over(process)
    _end_group(process)
    process.wait()


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
