"""Values in files: an array over an edge, and a gigabyte in and out."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from qflow.runner.v1 import file_service_pb2 as files_pb
from qflow.runner.v1 import upload_service_pb2 as uploads_pb
from qflow.runner.v1.file_service_pb2_grpc import FileServiceStub
from qflow.runner.v1.upload_service_pb2_grpc import UploadServiceStub

from bench.figures import figure
from bench.flow import Flow, running
from services.kit.pythons import find_pythons
from services.runner.domain.limits import Limits
from services.runner.gateways.file_store import FileStore
from services.runner.gateways.sandbox.bubblewrap import BubblewrapHost, find_bubblewrap
from services.runner.gateways.sandbox.cgroups import CgroupHost
from services.runner.gateways.sandbox.exchange import files_of, make_exchange
from services.runner.gateways.sandbox.interpreters import prepare_interpreters
from services.runner.gateways.sandbox.port import Interpreter, Sandbox, SandboxSpec

_ROUNDS: Final = 15
_ARRAY_BYTES: Final = 10 * 1024 * 1024
_GIGABYTE: Final = 1 << 30
_CHUNK_BYTES: Final = 512 * 1024
_MAKE: Final = f"""
import numpy as np

kept = np.random.default_rng(1).random({_ARRAY_BYTES // 8})


def main() -> np.ndarray:
    return kept
"""
_TAKE: Final = """
import numpy as np


def main(given: np.ndarray) -> float:
    return float(given[-1])
"""


async def numpy_edge() -> dict[str, Any]:
    """Milliseconds that 10 MB of an array take from one node's return to the next one's call.

    The part that is over before the next node may begin, written by the one and mapped by the
    other. That the bytes are also hashed and synced on the way is told beside it.
    """
    with tempfile.TemporaryDirectory(prefix="qfv-") as name:
        home = Path(name)
        cgroups = CgroupHost.detect(home)
        try:
            return await _numpy_edge(home, cgroups)
        finally:
            if cgroups is not None:
                cgroups.close()


async def _numpy_edge(home: Path, cgroups: CgroupHost | None) -> dict[str, Any]:
    program = find_bubblewrap()
    assert program is not None, "no bubblewrap: run `make setup`"
    host = BubblewrapHost(program, cgroups=cgroups)
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    interpreter = prepare_interpreters(find_pythons().values(), home / "agent")[own]
    array = {"t": "ndarray"}
    maker = await _loaded(home, host, interpreter, _MAKE, [], array)
    taker = await _loaded(home, host, interpreter, _TAKE, [("given", array)], {"t": "float"})
    store, tenant = FileStore(home / "files"), uuid.uuid4()
    edges, durable = [], []
    try:
        for at in range(_ROUNDS + 2):
            carried_us, stored_ms = await _over(maker, taker, store, tenant)
            if at > 1:  # the first ones warm what is asked
                edges.append(carried_us / 1000)
                durable.append(stored_ms)
    finally:
        await maker.kill()
        await taker.kill()
    floor = _memcpy_ms()
    found = figure(edges, "ms", "lower", target=5 * floor, floor=floor)
    return found | {"hashed_and_synced_ms": round(sorted(durable)[len(durable) // 2], 2)}


async def _loaded(
    home: Path,
    host: BubblewrapHost,
    interpreter: Interpreter,
    code: str,
    inputs: list[tuple[str, Any]],
    output: Any,
) -> Sandbox:
    sandbox_id = uuid.uuid4()
    sandbox = await host.start(
        SandboxSpec(
            sandbox_id=sandbox_id,
            python=interpreter.executable,
            prefix=interpreter.prefix,
            agent=interpreter.agent,
            environment=Path(np.__file__).parents[1],
            limits=Limits(),
            exchange=make_exchange(home / "exchange", sandbox_id),
        )
    )
    reply = await sandbox.request(
        {
            "op": "load",
            "code": code,
            "main": "main",
            "inputs": [{"name": name, "type": kind} for name, kind in inputs],
            "outputs": [{"name": "result", "type": output}],
            "env": sandbox.environment_path,
        }
    )
    assert reply.header["op"] == "loaded", reply.header
    return sandbox


async def _over(
    maker: Sandbox, taker: Sandbox, store: FileStore, tenant: uuid.UUID
) -> tuple[float, float]:
    """Give the microseconds that both agents took, and the milliseconds into the store."""
    file_id = uuid.uuid4()
    call = {"op": "call", "id": 1, "inputs": [], "output_bytes_max": 1 << 26}
    made = await maker.request({**call, "file_ids": [str(file_id)]}, descriptors_max=1)
    [descriptor] = made.descriptors
    begin = time.perf_counter()
    size, sha256 = await asyncio.to_thread(
        store.adopt, tenant_id=tenant, file_id=file_id, descriptor=descriptor, bytes_max=1 << 30
    )
    stored_ms = (time.perf_counter() - begin) * 1000
    os.close(descriptor)
    exchange = taker.spec.exchange
    assert exchange is not None
    begin = time.perf_counter()
    place = files_of(exchange) / "value.npy"
    store.lend(f"{tenant}/{file_id}", place, size_bytes=size, sha256=sha256)
    lent_us = (time.perf_counter() - begin) * 1_000_000
    text = json.dumps({"$file": str(file_id)}).encode()
    taken = await taker.request(
        {
            **call,
            "inputs": [["given", len(text), []]],
            "files": {str(file_id): [f"{taker.files_path}/value.npy", "npy"]},
        },
        text,
    )
    place.unlink()
    store.remove(tenant_id=tenant, file_id=file_id)
    agents_us = sum(each.header["usage"]["serialization_us"] for each in (made, taken))
    return agents_us + lent_us, stored_ms


def _memcpy_ms() -> float:
    source = np.random.default_rng(1).random(_ARRAY_BYTES // 8)
    spans = []
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        copy = source.copy()
        spans.append((time.perf_counter() - begin) * 1000)
        del copy
    return sorted(spans)[len(spans) // 2]


async def file_gigabyte() -> dict[str, Any]:
    """Megabytes a second of a 1 GiB file, up and down over gRPC, and what it took of memory."""
    async with running() as flow:
        runner = _runner(flow)
        _forget_peak(runner)
        resting_mb = runner.memory_info().rss / 1e6
        async with flow.suite.channel("runner") as channel:
            uploads: Any = UploadServiceStub(channel)
            files: Any = FileServiceStub(channel)
            begin = time.perf_counter()
            created = await uploads.CreateUpload(
                uploads_pb.CreateUploadRequest(filename="g", size_bytes=_GIGABYTE), timeout=30
            )
            await uploads.WriteUpload(_gigabyte(created.upload.id), timeout=600)
            finished = await uploads.FinishUpload(
                uploads_pb.FinishUploadRequest(upload_id=created.upload.id), timeout=60
            )
            up_s = time.perf_counter() - begin
            begin = time.perf_counter()
            received = 0
            request = files_pb.DownloadFileRequest(file_id=finished.file.id)
            async for part in files.DownloadFile(request, timeout=600):
                received += len(part.chunk)
            down_s = time.perf_counter() - begin
        assert received == _GIGABYTE, received
        peak_mb = _peak_mb(runner)
    up, down = _GIGABYTE / 1e6 / up_s, _GIGABYTE / 1e6 / down_s
    found = figure([min(up, down)], "MB/s", "higher", target=100.0, floor=0.0)
    return found | {
        "up_mb_s": round(up, 1),
        "down_mb_s": round(down, 1),
        "memory_above_rest_mb": round(peak_mb - resting_mb, 1),
        "memory_peak_mb": round(peak_mb, 1),
    }


async def _gigabyte(upload_id: str) -> AsyncIterator[uploads_pb.WriteUploadRequest]:
    chunk = os.urandom(_CHUNK_BYTES)
    yield uploads_pb.WriteUploadRequest(upload_id=upload_id, chunk=chunk)
    for _ in range(_GIGABYTE // _CHUNK_BYTES - 1):
        yield uploads_pb.WriteUploadRequest(chunk=chunk)


def _runner(flow: Flow) -> psutil.Process:
    found = psutil.Process(flow.suite.supervisor_pid).children(recursive=True)
    return next(each for each in found if "services.runner" in " ".join(each.cmdline()))


def _forget_peak(process: psutil.Process) -> None:
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")


def _peak_mb(process: psutil.Process) -> float:
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise AssertionError("the kernel tells no peak")
