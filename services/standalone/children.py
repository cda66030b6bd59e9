"""The children of a suite: each is started again when it ends, and all are stopped in an order."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from services.standalone import process
from services.standalone.addresses import SERVICES
from services.standalone.home import Home
from services.standalone.process import ProcessMark, StandaloneError, describe_exit

_FIRST_FAILURES_MAX: Final = 3
_EXIT_MISCONFIGURED: Final = 2  # how a service says that another try will not help
_STEADY_S: Final = 30.0
RESTART_PAUSE_MAX_S: Final = 30.0
_LOG_CHECK_S: Final = 10.0
# From SIGTERM to the end: runners hand over what they finish while orchestrators still take it.
_STOP_ORDER: Final = ((("runner",), 20.0), (("orchestrator", "registry", "telemetry"), 6.0))
_KILL_WAIT_S: Final = 1.0
LONGEST_STOP_S: Final = _STOP_ORDER[0][1]
_BACKOFF_FIRST_S: Final = 0.25


@dataclass(slots=True)
class Kept:
    """One child that is started again when it ends."""

    name: str
    start: Callable[[], subprocess.Popen[bytes]]
    child: subprocess.Popen[bytes] | None = None
    failures: int = 0
    ready: bool = False


@dataclass(slots=True)
class Children:
    """Those of one run of the suite; PostgreSQL and Redis are stopped by ways of their own."""

    home: Home
    say: Callable[[str], None]
    restart_pause_max_s: float = RESTART_PAUSE_MAX_S
    stopping: asyncio.Event = field(default_factory=asyncio.Event)  # set: none is started again
    hurried: asyncio.Event = field(default_factory=asyncio.Event)  # set: `stop` waits no longer
    failed: list[str] = field(default_factory=list)  # what does not start, and why
    _kept: dict[str, Kept] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Kept:
        """Give one of them by its name."""
        return self._kept[name]

    def keep(self, name: str, start: Callable[[], subprocess.Popen[bytes]]) -> None:
        """Start a child, to be started again when it ends."""
        kept = Kept(name, start)
        self._kept[name] = kept
        kept.child = start()
        self._remember()

    def restarting(self) -> list[Coroutine[Any, Any, None]]:
        """Give what starts each again, to be run while the suite stays."""
        return [self._restart(kept) for kept in self._kept.values()]

    async def _restart(self, kept: Kept) -> None:
        """Start a child again whenever it ends, waiting longer each time it ends soon."""
        while True:
            began = time.monotonic()
            assert kept.child is not None
            code = await process.wait(kept.child)
            if self.stopping.is_set():
                return
            kept.failures = 1 if time.monotonic() - began > _STEADY_S else kept.failures + 1
            hopeless = code == _EXIT_MISCONFIGURED or kept.failures >= _FIRST_FAILURES_MAX
            if hopeless and not kept.ready and kept.name in SERVICES:
                self.failed.append(
                    f"{kept.name} does not start ({describe_exit(code)}). " + self.log_of(kept.name)
                )
                self.stopping.set()
                return
            pause_s = backoff_s(kept.failures, max_s=self.restart_pause_max_s)
            self.say(f"{kept.name} ended ({describe_exit(code)}), starts again in {pause_s:g} s")
            await asyncio.sleep(pause_s)
            try:
                # In this thread, the main one: children die with the thread that starts them.
                kept.child = kept.start()
                self._remember()
            except (StandaloneError, OSError) as error:
                # OSError: the machine has no process, memory or file left at the moment.
                self.say(f"{kept.name}: {error}")

    async def cap_logs(self) -> None:
        """Keep what they write small, for as long as it runs."""
        while True:
            await asyncio.sleep(_LOG_CHECK_S)
            for log in self.home.log.glob("*.log"):
                process.cap_log(log)

    async def stop(self) -> None:
        """Stop services in their order; `hurried` kills."""
        for names, patience_s in _STOP_ORDER:
            children = [
                kept.child
                for name in names
                if (kept := self._kept.get(name)) and kept.child and kept.child.poll() is None
            ]
            for child in children:
                child.terminate()
            await self._unless_hurried(all_gone(children, timeout_s=patience_s))
            for child in children:
                if child.poll() is None:
                    child.kill()
            await all_gone(children, timeout_s=_KILL_WAIT_S)

    async def _unless_hurried(self, drain: Coroutine[Any, Any, None]) -> None:
        """Wait for a drain, but no longer once Ctrl-C came again."""
        draining = asyncio.ensure_future(drain)
        hurried = asyncio.ensure_future(self.hurried.wait())
        await asyncio.wait({draining, hurried}, return_when=asyncio.FIRST_COMPLETED)
        for each in (draining, hurried):
            each.cancel()
        await asyncio.gather(draining, hurried, return_exceptions=True)

    def reap(self) -> None:
        """End what a killed supervisor left; its children should have died with it."""
        for name, mark in self.home.remembered().items():
            if name != "postgres":  # has a way of its own to be stopped without harm
                mark.end([(signal.SIGKILL, 5.0)])

    def _remember(self) -> None:
        marks = {
            name: mark
            for name, kept in self._kept.items()
            if kept.child is not None and (mark := ProcessMark.of(kept.child.pid))
        }
        self.home.remember(marks)

    def log_of(self, name: str) -> str:
        """Give the end of what a child has written, and where it lies."""
        log = self.home.log / f"{name}.log"
        return f"The end of {log}:\n{process.tail(log)}"


def backoff_s(failures: int, *, max_s: float) -> float:
    """Give the pause before a start: none after the first end, then doubling to the longest."""
    if failures <= 1:
        return 0.0
    return min(max_s, _BACKOFF_FIRST_S * 2.0 ** min(failures - 2, 20))


async def all_gone(children: Sequence[subprocess.Popen[bytes]], *, timeout_s: float) -> None:
    """Wait until all have ended, or for so long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            for child in children:
                await process.wait(child)
