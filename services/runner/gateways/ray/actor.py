"""The actor: holds a runner's resources, and runs the runner as a child process.

No data of runs passes through it: the runner attaches to orchestrators like any other, with a lease
of its own. It is a child because sandboxes are bound to the main thread of their parent, which in
an actor belongs to Ray. When the actor dies, with its machine or with Ray, the runner is killed.
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
_RUNNERS_MAX: Final = 4096  # per home
_LOOK_S: Final = 0.1


class RunnerActor:
    """A runner on a machine chosen by Ray; its methods run in threads, one of which is held."""

    def __init__(self, size: str) -> None:
        self._size = size
        self._listens_at = ""
        self._named = threading.Event()
        self._over = threading.Event()

    def size(self) -> str:
        """Return the size it was created with; answers as soon as it has a machine."""
        return self._size

    def hold(self, settings: Mapping[str, str], labels: str, host: str) -> None:
        """Run the runner to its end, then exit; never returns."""
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
        os._exit(0)  # releases its resources, so that the machine is not held for nothing

    def ready(self) -> None:
        """Return once the runner serves, which it does when it attaches."""
        self._named.wait()
        while not _answers(self._listens_at):
            time.sleep(_LOOK_S)

    def watch(self) -> None:
        """Block until the actor ends; never returns."""
        self._over.wait()


class NotHere(Exception):  # noqa: N818 - it says what this machine lacks
    """This machine cannot have a runner."""


def _environment(settings: Mapping[str, str], labels: str, host: str) -> dict[str, str]:
    """Return a runner's settings: those sent, over the machine's own, which have its secrets."""
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
    # The runners of a machine cannot share one address.
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
    """Reserve the first name that no other actor of this home has, until this process ends.

    So a killed runner's name is reused, and the new runner cleans up what that one left.
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
