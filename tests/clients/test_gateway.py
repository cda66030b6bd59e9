"""JSON over HTTP, by curl against a running suite: same calls, same tokens, same errors."""

from __future__ import annotations

import base64
import http.client
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from qflow.auth.v1 import auth_pb2

from tests.clients.builds import KEPT, ROOT, generate, insist, run
from tests.support.suite import Suite

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]

NODE = "def tell(name: str, n: int) -> str:\n    return f'{name}: {n + 1}'\n"
EXECUTIONS = "qflow.orchestrator.v1.ExecutionService"


@pytest.fixture(scope="module")
def program() -> Path:
    """The gateway, compiled."""
    insist("go", "curl")
    generate("gateway")
    folder = ROOT / "deploy" / "gateway"
    run(["go", "vet", "."], folder)
    run(["go", "build", "-o", KEPT / "gateway", "."], folder)
    return KEPT / "gateway"


@pytest.fixture(scope="module")
def gateway(program: Path, suite: Suite) -> Iterator[str]:
    """A gateway before the suite: its address."""
    with serving(program, suite) as address:
        yield f"http://{address}"


@contextmanager
def serving(program: Path, suite: Suite, told: Mapping[str, str] | None = None) -> Iterator[str]:
    """Start it on a free port, and stop it."""
    child = subprocess.Popen(
        [program], env=environment(suite) | dict(told or {}), stderr=subprocess.PIPE, text=True
    )
    assert child.stderr is not None
    with child:
        try:
            first = json.loads(child.stderr.readline())
            assert "gateway_serves" == first["msg"], first
            yield first["address"]
        finally:
            child.terminate()
            assert 0 == child.wait(40), child.stderr.read()


def environment(suite: Suite) -> dict[str, str]:
    inherited = {name: v for name, v in os.environ.items() if not name.startswith("QFLOW_")}
    addresses = {
        f"QFLOW_{each.upper()}": suite.endpoints[each]
        for each in ("registry", "orchestrator", "runner", "telemetry")
    }
    return {**inherited, **addresses, "QFLOW_GATEWAY_LISTEN": "127.0.0.1:0"}


class Curl:
    """Calls by curl, with a token once there is one."""

    def __init__(self, gateway: str, *options: str) -> None:
        self.gateway = gateway
        self.options = options
        self.token = ""

    def __call__(self, method: str, request: Any) -> tuple[int, list[Any]]:
        """Give the HTTP status and the lines of the answer."""
        body = request if isinstance(request, str) else json.dumps(request)
        bearer = ["-H", f"authorization: Bearer {self.token}"] if self.token else []
        said = ["curl", "-sSN", "--max-time", "90", "-w", "\n%{http_code}", *self.options, *bearer]
        command = [*said, "--data-binary", "@-", f"{self.gateway}/{method}"]
        done = subprocess.run(
            command, input=body, capture_output=True, encoding="utf-8", check=True
        )
        *lines, status = done.stdout.strip().split("\n")
        return int(status), [json.loads(line) for line in lines if line.startswith("{")]

    def answer(self, method: str, request: Any) -> Any:
        """Give the answer of a call that must go well."""
        status, lines = self(method, request)
        assert 200 == status, lines
        return lines[0]

    def sign_in(self, suite: Suite) -> None:
        """Trade the owner's password for a token."""
        password = (suite.home.secrets / "owner.password").read_text("utf-8").strip()
        told = self.answer(
            "qflow.registry.v1.SessionService/SignIn",
            {"email": "owner@localhost", "password": password},
        )
        self.token = told["token"]


def test_a_run_goes_from_its_source_to_its_result(gateway: str, suite: Suite) -> None:
    curl = Curl(gateway)
    curl.sign_in(suite)
    node = curl.answer(
        "qflow.registry.v1.NodeService/CreateNode", {"name": "by HTTP", "code": NODE}
    )["node"]
    graph = {
        "nodes": [{"id": "tell", "node_id": node["id"]}],
        "inputs": [{"name": "name"}, {"name": "n"}],
        "connections": [
            {"source_output": each, "target_node": "tell", "target_input": each}
            for each in ("name", "n")
        ],
    }
    workflow = curl.answer(
        "qflow.registry.v1.WorkflowService/CreateWorkflow",
        {"name": "by HTTP", "activate": True, "definition": graph},
    )["workflow"]
    start = {
        "workflow_id": workflow["id"],
        "input_json": json.dumps({"name": "Zoë · 東京 🚲", "n": 2**53}, ensure_ascii=False),
        "request_id": str(uuid.uuid4()),
    }
    first = curl.answer(f"{EXECUTIONS}/StartExecution", start)
    again = curl.answer(f"{EXECUTIONS}/StartExecution", start)
    assert again["existing"]
    run_id = first["execution"]["id"]
    assert run_id == again["execution"]["id"]
    status, lines = curl(f"{EXECUTIONS}/WatchExecution", {"execution_id": run_id})
    assert 200 == status
    steps = [line["result"] for line in lines]
    last = max(steps, key=lambda step: int(step.get("revision", 0)))
    seen = last.get("delta") or next(step["snapshot"] for step in steps if "snapshot" in step)
    assert "EXECUTION_STATUS_COMPLETED" == seen["execution"]["status"]
    told = curl.answer(f"{EXECUTIONS}/GetExecution", {"execution_id": run_id})["execution"]
    assert '{"tell":"Zoë · 東京 🚲: 9007199254740993"}' == told["output_json"]


def test_a_file_goes_in_by_lines_and_comes_out_by_lines(gateway: str, suite: Suite) -> None:
    curl = Curl(gateway)
    curl.sign_in(suite)
    content = "Grüße\n".encode() * 30_000
    uploads = "qflow.runner.v1.UploadService"
    made = curl.answer(
        f"{uploads}/CreateUpload", {"filename": "grüße.txt", "size_bytes": len(content)}
    )["upload"]
    parts = [content[at : at + 65536] for at in range(0, len(content), 65536)]
    lines = [
        json.dumps({"upload_id": "" if at else made["id"], "chunk": base64.b64encode(p).decode()})
        for at, p in enumerate(parts)
    ]
    written = curl.answer(f"{uploads}/WriteUpload", "\n".join(lines))
    assert str(len(content)) == written["received_bytes"]
    file = curl.answer(f"{uploads}/FinishUpload", {"upload_id": made["id"]})["file"]
    status, answers = curl("qflow.runner.v1.FileService/DownloadFile", {"file_id": file["id"]})
    assert 200 == status
    chunks = [each["result"].get("chunk", "") for each in answers]
    assert content == b"".join(base64.b64decode(each) for each in chunks)


def test_a_refusal_says_what_grpc_callers_are_told(gateway: str, suite: Suite) -> None:
    curl = Curl(gateway)
    status, [told] = curl(f"{EXECUTIONS}/ListExecutions", {})
    assert (401, 16) == (status, told["code"])
    curl.sign_in(suite)
    status, [told] = curl(f"{EXECUTIONS}/StartExecution", {"workflow_id": "no id", "priority": 101})
    assert (400, 3) == (status, told["code"])
    details = {each["@type"].rpartition(".")[2]: each for each in told["details"]}
    assert "INVALID_REQUEST" == details["ErrorInfo"]["reason"]
    fields = {each["field"] for each in details["BadRequest"]["field_violations"]}
    assert {"workflow_id", "priority"} == fields
    missing = {"execution_id": str(uuid.uuid4())}
    assert 404 == curl(f"{EXECUTIONS}/GetExecution", missing)[0]
    assert 400 == curl(f"{EXECUTIONS}/GetExecution", "no JSON")[0]
    assert 400 == curl(f"{EXECUTIONS}/GetExecution", {"execution_id": "x" * (6 << 20)})[0]
    status, lines = curl(f"{EXECUTIONS}/WatchExecution", missing)
    assert 404 == status, lines


def test_every_call_of_users_is_translated_and_no_other(gateway: str) -> None:
    connection = http.client.HTTPConnection(gateway.removeprefix("http://"), timeout=30)
    wrong, count = [], 0
    for name, users in every_rpc():
        connection.request("POST", f"/{name}", body="{}")
        answer = connection.getresponse()
        told = json.loads(answer.read().splitlines()[0])
        count += 1
        if users == (answer.status == 404 and told.get("message") == "Not Found"):
            wrong.append(f"{name}: {answer.status} {told}")
    connection.close()
    assert [] == wrong
    assert count > 150


def every_rpc() -> Iterator[tuple[str, bool]]:
    """Each RPC by its full name, and whether its service has any for anybody but services."""
    buf = Path(sys.executable).with_name("buf")
    built = subprocess.run(
        [buf, "build", ROOT / "protos", "-o", "-"], capture_output=True, check=True
    )
    for file in FileDescriptorSet.FromString(built.stdout).file:
        for service in file.service:
            audiences = {
                audience
                for method in service.method
                for audience in method.options.Extensions[auth_pb2.rule].audiences
            }
            for method in service.method:
                name = f"{file.package}.{service.name}/{method.name}"
                yield name, audiences != {auth_pb2.AUDIENCE_SERVICE}


def test_it_speaks_tls_and_beyond_loopback_nothing_else(
    program: Path, suite: Suite, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "services.standalone", "certificates", "--host", "127.0.0.1"]
    run([*command, "--folder", str(tmp_path), "--days", "2"])
    told = {
        "QFLOW_TLS_CERTIFICATE_FILE": str(tmp_path / "registry.crt"),
        "QFLOW_TLS_KEY_FILE": str(tmp_path / "registry.key"),
    }
    with serving(program, suite, told) as address:
        curl = Curl(f"https://{address}", "--cacert", str(tmp_path / "authority.crt"))
        curl.sign_in(suite)
        assert curl.answer("qflow.registry.v1.SessionService/GetCaller", {})["caller"]
        health = [
            "curl",
            "-sS",
            "--cacert",
            str(tmp_path / "authority.crt"),
            f"https://{address}/healthz",
        ]
        assert "serving\n" == run(health)
        # What an image that has nothing else asks with.
        asked = environment(suite) | told | {"QFLOW_GATEWAY_LISTEN": address}
        assert (
            0 == subprocess.run([program, "check"], env=asked, check=False, timeout=30).returncode
        )
    gone = subprocess.run(
        [program, "check"], env=asked, capture_output=True, text=True, check=False, timeout=30
    )
    assert 1 == gone.returncode
    assert "connection refused" in gone.stderr
    open_to_all = environment(suite) | {"QFLOW_GATEWAY_LISTEN": "0.0.0.0:0"}
    refused = subprocess.run(
        [program], env=open_to_all, capture_output=True, text=True, check=False, timeout=30
    )
    assert 1 == refused.returncode
    assert "tokens would travel in plain text" in refused.stderr
