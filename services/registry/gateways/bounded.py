"""Run work on large input in a child process with limits on time and memory."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from pathlib import Path
from typing import Any, Final

import orjson
import structlog

from services.kit import child

log = structlog.get_logger()

_ROOT: Final = Path(__file__).parents[3]
_CHILDREN_MAX: Final = 2
_CPU_S: Final = 8
_WALL_S: Final = 8.0
_ADDRESS_SPACE_BYTES: Final = 2 << 30
_OUTPUT_BYTES_MAX: Final = 16 * 1024 * 1024


class Bounded:
    """Runs a module of this package as a child process, with limited concurrency.

    The module reads one JSON value from standard input and writes one to standard output.
    """

    def __init__(self, module: str) -> None:
        self._module = module
        self._slots = asyncio.Semaphore(_CHILDREN_MAX)

    async def ask(self, request: object) -> Any:
        """Return the child's response; None if it died, timed out or wrote too much."""
        async with self._slots:
            try:
                done = await child.run(
                    [sys.executable, "-m", self._module],
                    stdin=orjson.dumps(request),
                    env={
                        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                        "LC_ALL": "C.UTF-8",
                    },
                    cwd=_ROOT,
                    timeout_s=_WALL_S,
                    output_bytes_max=_OUTPUT_BYTES_MAX,
                )
            except (TimeoutError, child.OutputTooLargeError) as error:
                log.warning("child_ended", module=self._module, why=type(error).__name__)
                return None
        if done.code != 0 or not done.stdout:
            log.warning("child_died", module=self._module, code=done.code)
            return None
        return orjson.loads(done.stdout)


def request() -> Any:
    """In the child: apply resource limits to this process, and read the request."""
    for what, value in (
        (resource.RLIMIT_CPU, _CPU_S),
        (resource.RLIMIT_AS, _ADDRESS_SPACE_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        ceiling = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (ceiling, ceiling))
    return orjson.loads(sys.stdin.buffer.read())


def respond(answer: object) -> None:
    """In the child: write the response."""
    sys.stdout.buffer.write(orjson.dumps(answer))
