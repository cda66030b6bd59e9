"""Real sandboxes, real Pythons, and an orchestrator that only speaks Attach."""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.kit.pythons import ask, find_pythons
from services.runner.domain.limits import Limits, Tier
from services.runner.gateways.sandbox.bubblewrap import BubblewrapHost, find_bubblewrap
from services.runner.gateways.sandbox.cgroups import CgroupHost
from services.runner.gateways.sandbox.groups import ProcessGroups
from services.runner.gateways.sandbox.interpreters import prepare_interpreters
from services.runner.gateways.sandbox.landlock import LandlockHost
from services.runner.gateways.sandbox.port import (
    Interpreter,
    Reply,
    Sandbox,
    SandboxHost,
    SandboxSpec,
)

INT = {"t": "int"}
ANY = {"t": "any"}


@pytest.fixture(scope="session")
def runner_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runner-home")


@pytest.fixture(scope="session")
def interpreters(runner_home: Path) -> dict[str, Interpreter]:
    return prepare_interpreters(find_pythons().values(), runner_home / "agent")


@pytest.fixture(scope="session")
def interpreter(interpreters: dict[str, Interpreter]) -> Interpreter:
    return interpreters[max(interpreters, key=lambda version: int(version.split(".")[1]))]


@pytest.fixture(scope="session")
def cgroups(runner_home: Path) -> Iterator[CgroupHost | None]:
    found = CgroupHost.detect(runner_home)
    yield found
    if found is not None:
        found.close()


@pytest.fixture(scope="session")
def sandbox_host(cgroups: CgroupHost | None) -> BubblewrapHost:
    program = find_bubblewrap()
    assert program is not None, "no bubblewrap: run `make setup`"
    return BubblewrapHost(program, cgroups=cgroups)


class Box:
    """A sandbox with a node loaded."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.on_beat: Callable[[bytes], None] | None = None
        self._calls = 0

    async def call(
        self,
        texts: Mapping[str, str] | None = None,
        *,
        context: Mapping[str, str] | None = None,
        conversions: Mapping[str, Sequence[str]] | None = None,
        output_bytes_max: int = 1 << 22,
    ) -> Reply:
        """Call with inputs as JSON texts."""
        self._calls += 1
        texts = texts or {}
        given = [
            [name, len(text.encode()), list((conversions or {}).get(name, ()))]
            for name, text in texts.items()
        ]
        self.sandbox.begin_output(None, self.on_beat)
        return await self.sandbox.request(
            {
                "op": "call",
                "id": self._calls,
                "inputs": given,
                "output_bytes_max": output_bytes_max,
                "context": dict(context or {}),
            },
            "".join(texts.values()).encode(),
            reply_bytes_max=output_bytes_max + 4096,
        )

    async def value(self, **texts: str) -> Any:
        """Call, and give the one output."""
        reply = await self.call(texts)
        assert "error" not in reply.header, reply.header["error"]
        return json.loads(reply.body)

    async def error(self, **texts: str) -> dict[str, Any]:
        """Call, and give the error."""
        reply = await self.call(texts)
        assert "error" in reply.header, reply.body
        return dict(reply.header["error"])


Start = Callable[..., Awaitable[Box]]


@pytest.fixture
async def start(sandbox_host: BubblewrapHost, interpreter: Interpreter) -> AsyncIterator[Start]:
    """`await start(code, inputs={"x": type}, outputs={"result": type})` gives a Box."""
    async with _starting(sandbox_host, interpreter) as starting:
        yield starting


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where every user may enter: a sandbox at T1 is one of its own."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(params=["T2", "T1"])
def host(
    request: pytest.FixtureRequest,
    sandbox_host: BubblewrapHost,
    cgroups: CgroupHost | None,
    folder: Path,
) -> SandboxHost:
    """Each tier that this machine has without a daemon."""
    if Tier(request.param) is Tier.T2:
        return sandbox_host
    return LandlockHost(folder / "boxes", cgroups=cgroups, groups=ProcessGroups(folder / "groups"))


@pytest.fixture(scope="session")
def everybodys(runner_home: Path) -> Interpreter:
    """The system's Python, which every user may run."""
    system = ask(Path("/usr/bin/python3"))
    if system is None:
        pytest.skip("the system has no Python of its own")
    return prepare_interpreters([system], runner_home / "agent")[system.version]


@pytest.fixture
async def start_at(host: SandboxHost, everybodys: Interpreter) -> AsyncIterator[Start]:
    """`start`, at each tier in turn."""
    async with _starting(host, everybodys) as starting:
        yield starting


@asynccontextmanager
async def _starting(host: SandboxHost, interpreter: Interpreter) -> AsyncIterator[Start]:
    started: list[Sandbox] = []

    async def starting(
        code: str,
        *,
        inputs: Mapping[str, Any] | None = None,
        outputs: Mapping[str, Any] | None = None,
        main: str = "main",
        python: Interpreter | None = None,
        limits: Limits | None = None,
        environment: Path | None = None,
        load: bool = True,
    ) -> Box:
        chosen = python or interpreter
        sandbox = await host.start(
            SandboxSpec(
                sandbox_id=uuid.uuid4(),
                python=chosen.executable,
                prefix=chosen.prefix,
                agent=chosen.agent,
                environment=environment,
                limits=limits or Limits(),
            )
        )
        started.append(sandbox)
        if load:
            reply = await sandbox.request(load_header(code, inputs, outputs, main, environment))
            assert reply.header["op"] == "loaded", reply.header
        return Box(sandbox)

    try:
        yield starting
    finally:
        for sandbox in started:
            await sandbox.kill()


def load_header(
    code: str,
    inputs: Mapping[str, Any] | None = None,
    outputs: Mapping[str, Any] | None = None,
    main: str = "main",
    environment: Path | None = None,
) -> dict[str, Any]:
    return {
        "op": "load",
        "code": code,
        "main": main,
        "inputs": [
            {"name": name, "type": kind, "kind": "positional"}
            for name, kind in (inputs or {}).items()
        ],
        "outputs": [
            {"name": name, "type": kind} for name, kind in (outputs or {"result": ANY}).items()
        ],
        "env": "/qflow/environment" if environment else "",
    }
