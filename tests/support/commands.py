"""The command `qflow` in processes of its own that are forked once its imports are done.

They take several times as long as what most commands do, and tests give hundreds of commands.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

_END_S: Final = 120.0
_SERVER: Final = multiprocessing.get_context("forkserver")
# What nearly every command imports; none of it begins a thread, which a fork would leave behind.
_SERVER.set_forkserver_preload(["qflow.cli.app", "qflow.cli.show", "qflow.client.client"])


def qflow(arguments: Sequence[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Give what `python -m qflow` says from here in this environment, and how it ends."""
    with tempfile.TemporaryDirectory() as name:
        out, err = Path(name) / "out", Path(name) / "err"
        running = _SERVER.Process(
            target=_command, args=(list(arguments), dict(env), str(Path.cwd()), str(out), str(err))
        )
        running.start()
        running.join(_END_S)
        if running.exitcode is None:
            running.kill()
            running.join()
            raise subprocess.TimeoutExpired(["qflow", *arguments], _END_S)
        return subprocess.CompletedProcess(
            ["qflow", *arguments], running.exitcode, out.read_text("utf-8"), err.read_text("utf-8")
        )


def _command(arguments: list[str], env: dict[str, str], folder: str, out: str, err: str) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        with Path(path).open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    sys.argv = ["qflow", *arguments]
    runpy.run_module("qflow", run_name="__main__", alter_sys=True)
