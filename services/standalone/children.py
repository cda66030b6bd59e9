"""The child processes of a suite: restarted when they end, and stopped in order."""

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
_EXIT_MISCONFIGURED: Final = 2  # a service's exit code for a wrong configuration: no retry
_STEADY_S: Final = 30.0
RESTART_PAUSE_MAX_S: Final = 30.0
_LOG_CHECK_S: Final = 10.0
# Seconds from SIGTERM to SIGKILL. Runners stop first, since they hand over their results to
# orchestrators.
_STOP_ORDER: Final = ((("runner",), 20.0), (("orchestrator", "registry", "telemetry"), 6.0))
_KILL_WAIT_S: Final = 1.0
LONGEST_STOP_S: Final = _STOP_ORDER[0][1]
_BACKOFF_FIRST_S: Final = 0.25


@dataclass(slots=True)
class Kept:
    """A child process that is restarted when it ends."""

    name: str
    start: Callable[[], subprocess.Popen[bytes]]
    child: subprocess.Popen[bytes] | None = None
    failures: int = 0
    ready: bool = False


@dataclass(slots=True)
class Children:
    """The children of one run of the suite; PostgreSQL and Redis have their own ways to stop."""

    home: Home
    say: Callable[[str], None]
    restart_pause_max_s: float = RESTART_PAUSE_MAX_S
    stopping: asyncio.Event = field(default_factory=asyncio.Event)  # once set, none is restarted
    hurried: asyncio.Event = field(default_factory=asyncio.Event)  # once set, `stop` does not wait
    failed: list[str] = field(default_factory=list)  # messages about services that do not start
    _kept: dict[str, Kept] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Kept:
        """Return a child by name."""
        return self._kept[name]

    def keep(self, name: str, start: Callable[[], subprocess.Popen[bytes]]) -> None:
        """Start a child that is restarted when it ends."""
        kept = Kept(name, start)
        self._kept[name] = kept
        kept.child = start()
        self._remember()

    def restarting(self) -> list[Coroutine[Any, Any, None]]:
        """Return one coroutine per child that keeps restarting it."""
        return [self._restart(kept) for kept in self._kept.values()]

    async def _restart(self, kept: Kept) -> None:
        """Restart a child whenever it ends, with growing pauses if it ends soon."""
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
                # In the main thread: children are killed when the thread that started them ends.
                kept.child = kept.start()
                self._remember()
            except (StandaloneError, OSError) as error:
                # OSError: out of processes, memory or files at the moment.
                self.say(f"{kept.name}: {error}")

    async def cap_logs(self) -> None:
        """Keep the log files of all children small, until cancelled."""
        while True:
            await asyncio.sleep(_LOG_CHECK_S)
            for log in self.home.log.glob("*.log"):
                process.cap_log(log)

    async def stop(self) -> None:
        """Stop the services in order; once `hurried` is set, kills them."""
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
        """Wait for the work, but no longer once `hurried` is set."""
        draining = asyncio.ensure_future(drain)
        hurried = asyncio.ensure_future(self.hurried.wait())
        await asyncio.wait({draining, hurried}, return_when=asyncio.FIRST_COMPLETED)
        for each in (draining, hurried):
            each.cancel()
        await asyncio.gather(draining, hurried, return_exceptions=True)

    def reap(self) -> None:
        """Kill children that outlived a killed supervisor, which they normally do not."""
        for name, mark in self.home.remembered().items():
            if name != "postgres":  # stopped without harm in its own way
                mark.end([(signal.SIGKILL, 5.0)])

    def _remember(self) -> None:
        marks = {
            name: mark
            for name, kept in self._kept.items()
            if kept.child is not None and (mark := ProcessMark.of(kept.child.pid))
        }
        self.home.remember(marks)

    def log_of(self, name: str) -> str:
        """Return the end of a child's log, and the log's path."""
        log = self.home.log / f"{name}.log"
        return f"The end of {log}:\n{process.tail(log)}"


def backoff_s(failures: int, *, max_s: float) -> float:
    """Return the pause before a restart: none after the first end, then doubling up to `max_s`."""
    if failures <= 1:
        return 0.0
    return min(max_s, _BACKOFF_FIRST_S * 2.0 ** min(failures - 2, 20))


async def all_gone(children: Sequence[subprocess.Popen[bytes]], *, timeout_s: float) -> None:
    """Wait until all have ended, up to `timeout_s` seconds."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            for child in children:
                await process.wait(child)
