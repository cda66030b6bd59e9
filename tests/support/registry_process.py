"""A registry in a process of its own, one login of which goes over a wire that a test can hold."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.database import Database

Moment = Literal["before the statement", "before the commit", "after the commit"]


@dataclass
class Wire:
    """Between the registry and PostgreSQL: holds a statement, the COMMIT after it, or its answer.

    What is held is held until the registry is dead: nothing is slow, and no moment is missed.
    """

    server: str
    statement: bytes = b""
    moment: Moment = "before the commit"
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    def arm(self, statement: bytes, moment: Moment) -> None:
        """Hold what comes next at that statement."""
        self.statement, self.moment = statement, moment
        self.reached.clear()

    async def carry(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        """Carry one connection."""
        answers, out = await asyncio.open_unix_connection(self.server)
        held = asyncio.Event()
        answering = asyncio.create_task(self._answer(answers, back, held))
        seen = False
        with suppress(ConnectionError):
            while asked := await client.read(65_536):
                seen = seen or bool(self.statement and self.statement in asked)
                if seen and (self.moment == "before the statement" or b"COMMIT" in asked):
                    self.statement = b""
                    if self.moment != "after the commit":
                        self.reached.set()
                        break
                    held.set()
                out.write(asked)
                await out.drain()
        if not held.is_set():
            await client.read()  # until the registry is dead
        else:
            while await client.read(65_536):
                pass
        out.close()
        back.close()
        await answering

    async def _answer(
        self, answers: asyncio.StreamReader, back: asyncio.StreamWriter, held: asyncio.Event
    ) -> None:
        with suppress(ConnectionError):
            while said := await answers.read(65_536):
                if held.is_set():
                    self.reached.set()  # committed, and nobody is told
                else:
                    back.write(said)
                    await back.drain()


def sockets_of(database: Database) -> str:
    """Give the folder of PostgreSQL's socket."""
    return database.url("qflow_registry").split("host=")[1].split("&")[0]


class RegistryProcess:
    """`python -m services.registry`, one login of which goes over the wire in `folder`."""

    def __init__(self, database: Database, folder: Path, *, login: str) -> None:
        inherited = {name: v for name, v in os.environ.items() if not name.startswith("QFLOW_")}
        self.address = f"unix:{folder}/registry.sock"
        self._env = inherited | database.env
        self._env["QFLOW_REGISTRY_LISTEN"] = self.address
        held = database.url(login).replace(sockets_of(database), str(folder))
        self._env[f"{login.upper()}_DATABASE_URL"] = held
        self._log = folder / "registry.log"
        self._process: subprocess.Popen[bytes] | None = None

    def _spawn(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "services.registry"],
                env=self._env,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    async def start(self) -> None:
        """Start it and wait until it serves."""
        self._spawn()
        async with grpc.aio.insecure_channel(self.address) as channel:
            probe: Any = health_pb2_grpc.HealthStub(channel)
            await probe.Check(health_pb2.HealthCheckRequest(), timeout=40, wait_for_ready=True)

    async def kill(self) -> None:
        """End it by kill -9."""
        assert self._process is not None
        self._process.kill()
        await asyncio.to_thread(self._process.wait)

    async def killed_in(self, wire: Wire, call: Any) -> None:
        """Kill it where the wire holds it; whoever called is told nothing but that."""
        calling = asyncio.ensure_future(call)
        waiting = asyncio.ensure_future(wire.reached.wait())
        await asyncio.wait({calling, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        assert not calling.done(), calling
        await self.kill()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await calling
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
