"""Child processes that die with the supervisor, and reliable identification of processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from services.kit.child import over

_SPAWN: Final = str(Path(__file__).with_name("spawn.py"))
_LOG_BYTES_MAX: Final = 10 * 1024 * 1024


class StandaloneError(Exception):
    """The suite cannot start or continue; the message says what to do."""


@dataclass(frozen=True, slots=True)
class ProcessMark:
    """Identifies a process: a pid alone may have been reused."""

    pid: int
    started_ticks: int

    @classmethod
    def of(cls, pid: int) -> ProcessMark | None:
        """Return the mark of a live process; None if there is none."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        # The name in parentheses may contain spaces and parentheses; fields count from its end.
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in {"Z", "X"} else cls(pid, int(fields[19]))

    def is_alive(self) -> bool:
        """Return whether this very process is alive."""
        return ProcessMark.of(self.pid) == self

    def end(self, ladder: Sequence[tuple[signal.Signals, float]]) -> bool:
        """Send each signal in turn with its timeout in seconds.

        Returns whether the process ended.
        """
        for number, patience_s in ladder:
            if not self.is_alive():
                return True
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
            if wait_until(lambda: not self.is_alive(), timeout_s=patience_s):
                return True
        return not self.is_alive()


def wait_until(condition: Callable[[], bool], *, timeout_s: float) -> bool:
    """Poll a cheap local condition until it is true; returns False after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
    return True


def start(
    command: Sequence[str],
    *,
    log: Path | None,
    env: Mapping[str, str],
    cwd: Path | None = None,
    identity: str = "same",
    death_signal: signal.Signals = signal.SIGKILL,
    stdin: int | Literal["null"] = "null",
    stdout: int | None = None,
    stderr: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a child that dies with the calling thread: call it from the main thread.

    Its output is appended to `log`, or inherited if that is None.
    """
    wrapped = [sys.executable, "-I", "-S", _SPAWN, str(os.getpid()), str(int(death_signal))]
    with contextlib.ExitStack() as stack:
        out: int | None = None
        if log is not None:
            log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, out)
        return subprocess.Popen(  # noqa: S603 - the command is ours
            [*wrapped, identity, *command],
            stdin=subprocess.DEVNULL if stdin == "null" else stdin,
            stdout=out if stdout is None else stdout,
            stderr=out if stderr is None else stderr,
            env=dict(env),
            cwd=cwd,
            # Ctrl-C at the terminal must reach only the supervisor, which stops children in its own
            # order.
            start_new_session=True,
        )


async def wait(child: subprocess.Popen[bytes]) -> int:
    """Wait for a child to end; returns its exit code."""
    if child.poll() is None:
        await over(child)
    return child.wait()


def describe_exit(code: int) -> str:
    """Return a description of an exit code."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def tail(log: Path, *, lines: int = 20) -> str:
    """Return the last lines of a log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 64 * 1024))
            return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])
    except OSError:
        return ""


def cap_log(log: Path, *, bytes_max: int = _LOG_BYTES_MAX) -> None:
    """Limit the size of a log file and of one predecessor.

    It is copied and truncated in place, since the child has it open for appending.
    """
    try:
        if log.stat().st_size <= bytes_max:
            return
        with log.open("r+b") as file:
            file.seek(-bytes_max // 2, os.SEEK_END)
            log.with_name(log.name + ".1").write_bytes(file.read())
            file.truncate(0)
    except OSError:
        return
