"""Fixtures for pytest: a Qflow per session, and local runs whose waits take no time.

    def test_it_doubles(qflow_local):
        assert 12 == qflow_local(twice, 3)

    async def test_it_doubles_for_real(qflow_client):
        assert 12 == await qflow_client.run(twice, 3)

Async fixtures need pytest-asyncio in auto mode. `qflow_client` uses the Qflow that is configured
(see `qflow.client.contexts`); otherwise it starts a suite on this machine for the session, or skips
the test if that is not installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from qflow.authoring.workflow import Workflow
from qflow.client import contexts
from qflow.client.client import Client
from qflow.client.contexts import Context
from qflow.exceptions import ConfigurationError
from qflow.local import Local

_READY: Final = "Qflow is ready"
_READY_S: Final = 120.0
_STOP_S: Final = 45.0
_REAL: Final = frozenset({"QFLOW_DATABASE_URL", "QFLOW_REDIS_URL"})


@pytest.fixture
def qflow_local() -> Callable[..., Any]:
    """Return a function for local runs: `qflow_local(workflow, 3, signals={…}, approvals={…})`."""

    def local(
        workflow: Workflow[..., Any],
        *args: Any,
        signals: Mapping[str, Any] | None = None,
        approvals: Mapping[str, bool] | None = None,
        **kwargs: Any,
    ) -> Any:
        world = Local(signals=signals or {}, approvals=approvals or {})
        return world.run(workflow, *args, **kwargs)

    return local


@pytest.fixture(scope="session")
def qflow_context() -> Iterator[Context]:
    """Yield the context of the Qflow for the whole session."""
    told = any(os.environ.get(name) for name in ("QFLOW_CONTEXT", "QFLOW_REGISTRY", "QFLOW_HOME"))
    if told:
        yield contexts.find()
        return
    if importlib.util.find_spec("services.standalone") is None:
        pytest.skip("no Qflow is told of (QFLOW_CONTEXT, QFLOW_HOME), and no suite is installed")
    with tempfile.TemporaryDirectory(prefix="qflow-test-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.standalone", "up", "--ports", "auto"],
            # Its own database and cache, whatever the environment has.
            env={name: each for name, each in os.environ.items() if name not in _REAL}
            | {"QFLOW_HOME": folder},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            _wait_ready(process)
            yield contexts.of_home(Path(folder))
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
async def qflow_client(qflow_context: Context) -> AsyncIterator[Client]:
    """Yield a client of the session's Qflow, as its owner."""
    async with Client(qflow_context) as client:
        yield client


def _wait_ready(process: subprocess.Popen[str]) -> None:
    ready, said = threading.Event(), list[str]()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if _READY in line:
                ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True).start()
    if not ready.wait(_READY_S) or process.poll() is not None:
        raise ConfigurationError("the suite did not start: " + json.dumps(said[-20:]))
