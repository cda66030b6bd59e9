"""The whole suite as a user runs it: `python -m services.standalone`, in a folder of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import psycopg
from qflow.registry.v1 import session_service_pb2, session_service_pb2_grpc

from services.kit.rpc.channel import open_channel
from services.kit.rpc.tls import Trust
from services.standalone import process
from services.standalone.home import Home
from services.standalone.process import ProcessMark, wait_until
from services.standalone.reach import open_local
from services.standalone.tls_files import ENDPOINTS_KEY

_READY_S = 240.0  # of a suite, on a machine that does five other things
_STOP_S = 90.0
_RESTART_S = 90.0


class Suite:
    """A running suite on a temporary home: start it, talk to it, hurt it, stop it."""

    def __init__(self, folder: Path, env: Mapping[str, str] | None = None) -> None:
        self.home = Home(folder)
        self.said: list[str] = []
        self._env = env or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None

    # Life.

    def start(self) -> Suite:
        """Start on free ports and wait until every service serves."""
        said = threading.Event()
        first_line = len(self.said)
        self.begin(on_line=lambda line: said.set() if "Qflow is ready" in line else None)
        assert self._process is not None
        running = self._process
        wait_until(lambda: said.is_set() or running.poll() is not None, timeout_s=_READY_S)
        if not said.is_set():
            self.stop()
            raise AssertionError("the suite did not start:\n" + "\n".join(self.said[first_line:]))
        return self

    def begin(self, *, on_line: Callable[[str], None] = lambda _: None) -> None:
        """Start without waiting; what it prints is kept in `said`."""
        inherited = {name: v for name, v in os.environ.items() if not name.startswith("QFLOW_")}
        kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        child = process.start(
            [sys.executable, "-m", "services.standalone", "up", "--ports", "auto"],
            log=None,
            env={**inherited, **kept, "QFLOW_HOME": str(self.home.root), **self._env},
            death_signal=signal.SIGTERM,
            stdout=subprocess.PIPE,
        )
        self._process = child
        self._reader = threading.Thread(target=self._read, args=(child, on_line), daemon=True)
        self._reader.start()

    def stop(self) -> int:
        """Stop as an operator would, and give the exit code; safe to call twice."""
        child, self._process = self._process, None
        if child is None:
            return 0
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
        try:
            code = child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            raise
        finally:
            self._end_reading(child)
        return code

    def kill(self) -> None:
        """End the supervisor itself by kill -9."""
        child, self._process = self._process, None
        assert child is not None
        child.kill()
        child.wait()
        self._end_reading(child)

    @property
    def supervisor_pid(self) -> int:
        """The process that keeps the others."""
        assert self._process is not None
        return self._process.pid

    # What runs.

    @property
    def endpoints(self) -> dict[str, str]:
        """Service -> address."""
        found: dict[str, str] = json.loads((self.home.run / "endpoints.json").read_text("utf-8"))
        return found

    def marks(self) -> dict[str, ProcessMark]:
        """Name -> living process: the four services, `postgres` and `redis`."""
        return self.home.remembered()

    def kill_service(self, name: str, number: signal.Signals = signal.SIGKILL) -> ProcessMark:
        """Signal one process of the suite; give the one that was hit."""
        mark = self.marks()[name]
        os.kill(mark.pid, number)
        return mark

    def wait_restarted(self, name: str, before: ProcessMark) -> ProcessMark:
        """Wait until another process has taken the place of one that ended."""

        def replaced() -> bool:
            now = self.marks().get(name)
            return now is not None and now != before

        assert wait_until(replaced, timeout_s=_RESTART_S), f"{name} was not started again"
        return self.marks()[name]

    # Ways in.

    @property
    def owner_token(self) -> str:
        """The first owner's bearer token."""
        return (self.home.secrets / "owner.token").read_text("utf-8").strip()

    def channel(self, service: str, *, token: str | None = None) -> grpc.aio.Channel:
        """Open a channel that sends the owner's token; close it, or use `async with`."""
        shown = self.owner_token if token is None else token
        return open_channel(self.endpoints[service], shown, trust=self.trust)

    @property
    def trust(self) -> Trust | None:
        """By what clients believe the services; None where they speak in plain text."""
        authorities = self.endpoints.get(ENDPOINTS_KEY)
        return None if authorities is None else Trust(authorities=Path(authorities))

    async def sign_in(self) -> str:
        """Give the token of a new session of the owner, for a test that ends or spoils it."""
        password = (self.home.secrets / "owner.password").read_text("utf-8").strip()
        async with open_local(
            self.endpoints["registry"], self.endpoints.get(ENDPOINTS_KEY)
        ) as channel:
            stub: Any = session_service_pb2_grpc.SessionServiceStub(channel)
            answer = await stub.SignIn(
                session_service_pb2.SignInRequest(email="owner@localhost", password=password),
                timeout=30,
                wait_for_ready=True,
            )
        token: str = answer.token
        return token

    @property
    def database_url(self) -> str:
        """The superuser's URL of the embedded database."""
        return (self.home.secrets / "database.url").read_text("utf-8").strip()

    def sql(self) -> psycopg.Connection:
        """Open a blocking superuser connection; close it."""
        return psycopg.connect(self.database_url, autocommit=True)

    async def connect(self) -> asyncpg.Connection[asyncpg.Record]:
        """Open an asyncpg superuser connection; close it."""
        return await asyncpg.connect(self.database_url)

    def log(self, name: str) -> str:
        """Give what a process has logged so far."""
        return (self.home.log / f"{name}.log").read_text("utf-8", errors="replace")

    def _read(self, child: subprocess.Popen[bytes], on_line: Callable[[str], None]) -> None:
        assert child.stdout is not None
        with suppress(ValueError):
            for raw in child.stdout:
                line = raw.decode("utf-8", "replace").rstrip("\n")
                self.said.append(line)
                on_line(line)

    def _end_reading(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdout is not None
        if self._reader is not None:
            self._reader.join(5.0)
        child.stdout.close()


# What a developer may set for a whole test run.
_PASSED_ON = ("QFLOW_POSTGRES_BIN", "QFLOW_LOG_LEVEL", "QFLOW_TEST_FULL", "QFLOW_TLS")
