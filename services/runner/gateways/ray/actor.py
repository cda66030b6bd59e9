"""The actor: holds what it was sized by, and runs a runner in it as a process of its own.

Nothing of a run passes through it. The runner attaches to orchestrators like any other, under a
lease of its own; it is a child because sandboxes are tied to the main thread of their parent, which
in an actor is Ray's. Where the actor goes (its machine too, or Ray with it), the runner is killed.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from services.runner.gateways.ray import launch

_ROOT: Final = Path(__file__).resolve().parents[4]
_RUNNERS_MAX: Final = 4096  # on one home
_LOOK_S: Final = 0.1


class RunnerActor:
    """A runner on a machine of Ray's choice; its calls run in threads, one of which it holds."""

    def __init__(self, size: str) -> None:
        self._size = size
        self._listens_at = ""
        self._named = threading.Event()
        self._over = threading.Event()

    def size(self) -> str:
        """Answer as soon as there is a machine: what it was sized by, as it was told."""
        return self._size

    def hold(self, settings: Mapping[str, str], labels: str, host: str) -> None:
        """Run the runner to its end, then end; so this never answers."""
        try:
            env = _environment(settings, labels, host)
            self._listens_at = env["QFLOW_RUNNER_LISTEN"].removeprefix("unix:")
            self._named.set()
            program = [sys.executable, "-I", "-S", launch.__file__, str(os.getpid())]
            program += [sys.executable, "-m", "services.runner"]
            code = subprocess.call(program, env=env, cwd=_ROOT, stdin=subprocess.DEVNULL)  # noqa: S603
            _say(f"the runner has ended with {code}")
        except (OSError, NotHere) as problem:
            _say(str(problem))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # with it goes what it held: no machine is kept for nothing

    def ready(self) -> None:
        """Answer once the runner serves, which it does as it attaches."""
        self._named.wait()
        while not _answers(self._listens_at):
            time.sleep(_LOOK_S)

    def watch(self) -> None:
        """Stay until the actor ends; so this never answers."""
        self._over.wait()


class NotHere(Exception):  # noqa: N818 - it says what this machine lacks
    """No runner can be on this machine."""


def _environment(settings: Mapping[str, str], labels: str, host: str) -> dict[str, str]:
    """Give a runner's settings: the machine's own, with its secrets, under those it was sent."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    if not env.get("QFLOW_HOME"):
        raise NotHere("QFLOW_HOME is not set on this machine: start Ray with a runner's settings")
    if host != socket.gethostname() and not env.get("QFLOW_FILES_S3_BUCKET"):
        raise NotHere("QFLOW_FILES_S3_BUCKET is not set: runners of two machines share no files")
    home = Path(env["QFLOW_HOME"]).expanduser().absolute()
    name = _take_place(home / "run")
    env |= settings
    env["QFLOW_RUNNER_NAME"] = name
    env["QFLOW_RUNNER_LISTEN"] = f"unix:{home}/run/{name}.sock"
    env["QFLOW_RUNNER_LABELS"] = ",".join(
        each for each in (env.get("QFLOW_RUNNER_LABELS", ""), labels) if each
    )
    # One address cannot be every runner's on a machine.
    env["QFLOW_METRICS_LISTEN"] = env["QFLOW_RUNNER_METRICS_LISTEN"] = ""
    return env


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        try:
            asking.connect(path)
        except OSError:
            return False
        return True


def _take_place(folder: Path) -> str:
    """Take the first name that no other actor of this home has, until this process ends.

    So a killed runner's name is taken again, and with it what it left is found and removed.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for number in range(_RUNNERS_MAX):
        name = f"ray-{number}"
        place = os.open(folder / f"{name}.place", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(place)
        else:
            return name
    raise NotHere(f"{folder} has {_RUNNERS_MAX} runners already")


def _say(text: str) -> None:
    sys.stderr.write(f"qflow: {text}\n")
