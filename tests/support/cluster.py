"""Several orchestrators as processes over one database, each on a home of its own, and a runner."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import psycopg
from qflow.orchestrator.v1 import execution_service_pb2 as pb
from qflow.orchestrator.v1.execution_service_pb2_grpc import ExecutionServiceStub

from services.kit.rpc.channel import open_channel
from tests import factories
from tests.support.database import Database
from tests.support.runner_process import RunnerProcess

TTL_S = 3.0
_STOP_S = 40.0
_STEP = """
import os, time

def main(x: int) -> int:
    line = os.environ["QFLOW_RUN_ID"] + " " + os.environ["QFLOW_NODE_ID"] + "\\n"
    ledger = os.open("/ledger/lines", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(ledger, line.encode())
    os.close(ledger)
    time.sleep(0.05)
    return x + 1
"""


class OrchestratorProcess:
    """`python -m services.orchestrator` on a database and a home of a test."""

    def __init__(self, env: dict[str, str], home: Path, log: Path) -> None:
        self.home = home
        self.address = f"unix:{home}/api.sock"
        self._env = env
        self._log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> OrchestratorProcess:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.orchestrator"],
                env=self._env,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        return self

    def said(self) -> str:
        return self._log.read_text("utf-8", errors="replace") if self._log.exists() else ""

    async def until_said(self, text: str, *, times: int = 1, timeout_s: float = 90.0) -> None:
        """Wait for an event in its log."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.said().count(text) < times:  # noqa: ASYNC110  # another process writes
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"never said {text!r}:\n{self.said()}") from None

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end; gives the exit code."""
        assert self.process is not None
        return await asyncio.to_thread(self.process.wait, _STOP_S)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop it and give its exit code; safe to call twice."""
        process = self.process
        if process is None:
            return 0
        if process.poll() is None:
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)
        try:
            return await asyncio.to_thread(process.wait, _STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


class Cluster:
    """What runs over one database, and what clients ask of it."""

    def __init__(self, database: Database, folder: Path, sql: psycopg.Connection) -> None:
        self.database = database
        self.folder = folder
        self.sql = sql
        self.owner = factories.user(sql)
        self.runner_token = factories.service_token(sql, "runner", ["runner"])
        self.token = factories.service_token(sql, "orchestrator", ["orchestrator"])
        self.ledger = folder / "ledger"
        self.ledger.mkdir()
        self.ledger.chmod(0o777)
        lines = self.ledger / "lines"
        lines.touch()
        lines.chmod(0o666)  # under root each sandbox is another user
        self._began: list[OrchestratorProcess | RunnerProcess] = []

    def orchestrator(self, name: str, **env: str) -> OrchestratorProcess:
        """Make an orchestrator on the home of this name, and start it."""
        home = self.folder / name
        home.mkdir(exist_ok=True)
        inherited = {name: v for name, v in os.environ.items() if not name.startswith("QFLOW_")}
        process = OrchestratorProcess(
            inherited
            | self.database.env
            | {
                "QFLOW_HOME": str(home),
                "QFLOW_LEASE_TTL_S": str(TTL_S),
                "QFLOW_ORCHESTRATOR_LISTEN": f"unix:{home}/api.sock",
                "QFLOW_SERVICE_TOKEN": self.token,
            }
            | env,
            home,
            self.folder / f"{name}-{len(self._began)}.log",
        ).start()
        self._began.append(process)
        return process

    def runner_env(self) -> dict[str, str]:
        """Give what every runner over this database is told."""
        home = self.folder / "runner"
        home.mkdir(exist_ok=True)
        return self.database.env | {
            "QFLOW_HOME": str(home),
            "QFLOW_LEASE_TTL_S": str(TTL_S),
            "QFLOW_SERVICE_TOKEN": self.runner_token,
            "QFLOW_TESTING": "1",
            "QFLOW_RUNNER_TEST_BIND": str(self.ledger),
        }

    def runner(self, *orchestrators: OrchestratorProcess, **env: str) -> RunnerProcess:
        """Start a runner that is told of these orchestrators alone."""
        told = self.runner_env()
        runner = RunnerProcess(
            told
            | {
                "QFLOW_RUNNER_LISTEN": f"unix:{told['QFLOW_HOME']}/runner.sock",
                "QFLOW_ORCHESTRATOR_ATTACH_ADDRESS": ",".join(
                    f"unix:{each.home}/run/attach.sock" for each in orchestrators
                ),
                "QFLOW_RUNNER_SLOTS": "8",
            }
            | env,
            self.folder / f"runner-{len(self._began)}.log",
        ).start()
        self._began.append(runner)
        return runner

    async def stop(self) -> None:
        """End everything that was begun."""
        await asyncio.gather(*(each.stop(signal.SIGKILL) for each in self._began))

    def chain(self, length: int = 3) -> str:
        """Make a workflow of nodes one after the other, each of which tells the ledger."""
        step = factories.node(self.sql, self.owner, code=_STEP)
        names = [f"n{at}" for at in range(length)]
        edges = [("", "x", names[0], "x")]
        edges += [(a, "result", b, "x") for a, b in pairwise(names)]
        return str(
            factories.workflow(
                self.sql,
                self.owner,
                nodes=dict.fromkeys(names, step),
                edges=edges,
                outputs=[("out", names[-1])],
            )
        )

    def begun(self) -> Counter[str]:
        """Count the attempts of each node of each run, by what user code wrote."""
        return Counter((self.ledger / "lines").read_text("utf-8").splitlines())

    async def start(self, where: Callable[[], OrchestratorProcess], workflow: str, x: int) -> str:
        """Start a run as a client that repeats what is UNAVAILABLE, on whatever there is."""
        request = pb.StartExecutionRequest(
            workflow_id=workflow, input_json=json.dumps({"x": x}), request_id=str(uuid.uuid4())
        )
        answer = await self._repeated(where, "StartExecution", request)
        return str(answer.execution.id)

    async def finished(self, where: Callable[[], OrchestratorProcess], execution_id: str) -> Any:
        """Give a run once it is over."""
        request = pb.WaitExecutionRequest(execution_id=execution_id)
        while True:
            answer = await self._repeated(where, "WaitExecution", request)
            if answer.done:
                return answer.execution

    async def _repeated(
        self, where: Callable[[], OrchestratorProcess], method: str, request: Any
    ) -> Any:
        async with asyncio.timeout(90):
            while True:
                async with open_channel(where().address, self.owner.token) as channel:
                    try:
                        call = getattr(ExecutionServiceStub(channel), method)
                        return await call(request, timeout=40)
                    except grpc.aio.AioRpcError as error:
                        if error.code() is not grpc.StatusCode.UNAVAILABLE:
                            raise
                await asyncio.sleep(0.1)
