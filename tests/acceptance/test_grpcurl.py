"""The commands of the guide to grpcurl work as they stand there, from the first to the last."""

from __future__ import annotations

import json
import os
import re
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.stubless import Stubless
from tests.support.suite import Suite

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "deploy" / "grpcurl.md").read_text("utf-8")
PORTS = {"7101": "registry", "7102": "orchestrator", "7103": "runner", "7104": "telemetry"}
# Stands in for grpcurl: hands its arguments to the test, prints what comes back.
STAND_IN = """
import json, socket, sys
with socket.socket(socket.AF_UNIX) as test:
    test.connect(sys.argv[1])
    test.sendall(json.dumps(sys.argv[2:]).encode() + b"\\n")
    code, said = json.loads(test.makefile().readline())
print(said)
sys.exit(code)
"""


def blocks(document: str) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", document, re.MULTILINE | re.DOTALL)


def test_the_guide_runs_from_its_first_command_to_its_last(suite: Suite) -> None:
    with undrained(suite), a_checkout(suite) as folder, grpcurl(suite, folder) as asked:
        done = subprocess.run(
            ["sh", "-ec", "\n".join(blocks(GUIDE))],
            cwd=folder,
            env={
                "PATH": f"{folder}:{os.environ['PATH']}",
                "QFLOW_HOME": str(suite.home.root),
            },
            capture_output=True,
            text=True,
            check=False,
        )
    refused = [f"{what}: {said}" for what, code, said in asked if code != 0]
    assert [] == refused
    assert 0 == done.returncode, done.stdout + done.stderr
    assert json.dumps('{"greet":"Hello, Zoë"}', ensure_ascii=False) in done.stdout
    assert '"status": "EXECUTION_STATUS_CANCELLED"' in done.stdout


def test_the_readme_shows_what_the_guide_shows() -> None:
    [shown] = [each for each in blocks((ROOT / "README.md").read_text("utf-8")) if "call()" in each]
    assert shown in blocks(GUIDE)


@contextmanager
def undrained(suite: Suite) -> Iterator[None]:
    """Wait until the runner that the guide drains has another in its place, which serves."""
    before = suite.marks()["runner"]
    yield
    suite.wait_restarted("runner", before)
    with grpc.insecure_channel(suite.endpoints["runner"]) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        answer = health.Check(health_pb2.HealthCheckRequest(), timeout=60, wait_for_ready=True)
    assert health_pb2.HealthCheckResponse.SERVING == answer.status


@contextmanager
def a_checkout(suite: Suite) -> Iterator[Path]:
    """Make a folder in which the guide's paths lead to the suite that runs."""
    with tempfile.TemporaryDirectory(prefix="qfg-", dir="/tmp") as made:
        folder = Path(made)
        (folder / ".qflow").symlink_to(suite.home.root)
        (folder / ".venv").symlink_to(sys.prefix)
        yield folder


@contextmanager
def grpcurl(suite: Suite, folder: Path) -> Iterator[list[tuple[str, int, str]]]:
    """Put a grpcurl there; gives what is asked of it: the call, its code and the answer."""
    asked: list[tuple[str, int, str]] = []

    class Asked(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            arguments: list[str] = json.loads(self.rfile.readline())
            try:
                code, said = 0, answer(suite, arguments)
            except grpc.RpcError as error:
                code, said = 1, f"{error.code()}: {error.details()}"
            asked.append((arguments[-1], code, said))
            self.wfile.write(json.dumps([code, said]).encode() + b"\n")

    door = folder / "door"
    door.unlink(missing_ok=True)  # of whoever asked in this folder before
    program = folder / "grpcurl"
    (folder / "stand_in.py").write_text(STAND_IN)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -IS {folder}/stand_in.py {door} "$@"\n')
    program.chmod(0o700)
    with socketserver.UnixStreamServer(str(door), Asked) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield asked
        finally:
            server.shutdown()
            serving.join()


def answer(suite: Suite, arguments: Sequence[str]) -> str:
    """Do what grpcurl does with such arguments."""
    rest = list(arguments)
    options = {"-d": "{}", "-H": "authorization: Bearer ", "-max-time": ""}
    assert rest.pop(0) == "-plaintext"
    while rest[0] in options:
        options[rest[0]] = rest[1]
        del rest[:2]
    address, verb = rest[:2]
    client = Stubless(
        suite.endpoints[PORTS[address.rpartition(":")[2]]],
        options["-H"].removeprefix("authorization: Bearer "),
    )
    with client.channel:
        match verb:
            case "list":
                return "\n".join(client.database.get_services())
            case "describe":
                return str(client.database.FindFileContainingSymbol(rest[2]).name)
            case _:
                answers = client.call(verb, as_read(json.loads(options["-d"])))
                return "\n".join(json.dumps(each, indent=2, ensure_ascii=False) for each in answers)


def as_read(request: dict[str, Any]) -> dict[str, Any]:
    """Give a request as JSON has it: grpcurl alone takes a mask of fields as an object."""
    if "update_mask" in request:
        paths: list[str] = request["update_mask"]["paths"]
        camel = [re.sub(r"_(.)", lambda found: found[1].upper(), path) for path in paths]
        request["update_mask"] = ",".join(camel)
    return request
