"""What an attempt used is its own, also in an interpreter that served others before."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qflow.orchestrator.v1 import execution_pb2

from services.runner.domain.limits import MIB
from tests import factories
from tests.integration.orchestrator.conftest import Orchestra, orchestra
from tests.integration.runner.conftest import INT, Box, Start
from tests.integration.runner.test_attach import attached, run, single

__all__ = ["orchestra"]

FILE, STR = {"t": "file"}, {"t": "str"}


async def _used(box: Box, **texts: str) -> dict[str, Any]:
    reply = await box.call(texts)
    assert "error" not in reply.header, reply.header
    return dict(reply.header["usage"])


async def test_a_peak_of_memory_is_that_of_one_call(start: Start) -> None:
    box = await start(
        "def main(x):\n    return len(bytearray(x * 1024 * 1024))\n", inputs={"x": INT}
    )
    large = (await _used(box, x="100"))["max_rss_kb"]
    small = (await _used(box, x="1"))["max_rss_kb"]
    assert large > 100 * 1024
    assert small < 60 * 1024


async def test_children_that_a_call_waited_for_are_counted(start: Start) -> None:
    box = await start(
        "import subprocess, sys\n"
        "burn = 'import time\\nwhile time.process_time() < 0.3: pass'\n"
        "hold = 'x = bytearray(100 << 20)'\n"
        "def main(x):\n"
        "    if x == 1: subprocess.run([sys.executable, '-I', '-S', '-c', burn], check=True)\n"
        "    if x == 2: subprocess.run([sys.executable, '-I', '-S', '-c', hold], check=True)\n"
        "    return x\n",
        inputs={"x": INT},
    )
    assert (await _used(box, x="1"))["cpu_us"] > 300_000
    assert (await _used(box, x="0"))["cpu_us"] < 100_000
    assert (await _used(box, x="2"))["max_rss_kb"] > 100 * 1024
    assert (await _used(box, x="0"))["max_rss_kb"] < 60 * 1024


async def test_an_attempt_that_is_killed_has_used_what_its_control_group_says(
    orchestra: Orchestra,
) -> None:
    """B97, F29: of these no agent tells."""
    async with orchestra.running(), attached(orchestra):
        busy = single(
            orchestra,
            "import signal\n"
            "def main(x: int) -> int:\n"
            "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "    while True: x += 1\n",
            timeout_ms=500,
        )
        done = await run(orchestra, busy)
        assert ("timeout", True) == (
            done.error.error_type,
            done.resource_usage.cpu_time.ToMilliseconds() > 200,
        )
        bomb = single(
            orchestra,
            "def main(x: int) -> int:\n"
            "    held = []\n"
            "    while True: held.append(bytearray(1 << 22))\n",
            memory_bytes=64 * MIB,
        )
        done = await run(orchestra, bomb)
    assert execution_pb2.EXECUTION_STATUS_FAILED == done.status
    assert "oom" == done.error.error_type
    assert 60 * MIB < done.resource_usage.memory_peak_bytes <= 65 * MIB


async def test_what_an_attempt_moved_is_what_it_was_given_and_gave(orchestra: Orchestra) -> None:
    """Its texts, and the files that they refer to: also those that are in no row."""
    produce = (
        "import pathlib, os\n"
        "def main(x: int) -> pathlib.Path:\n"
        "    place = pathlib.Path(os.environ['QFLOW_OUTPUT_FILE'])\n"
        "    place.write_bytes(b'y' * 5000)\n"
        "    return place\n"
    )
    consume = (
        "import pathlib\n"
        "def main(f: pathlib.Path) -> str:\n    return f.read_text() + 'z' * 95000\n"
    )
    sql, owner = orchestra.sql, orchestra.owner
    workflow = str(
        factories.workflow(
            sql,
            owner,
            nodes={
                "a": factories.node(sql, owner, code=produce, gives=FILE),
                "b": factories.node(sql, owner, code=consume, inputs=["f"], takes=FILE, gives=STR),
            },
            edges=[("", "x", "a", "x"), ("a", "result", "b", "f")],
            outputs=[("out", "b")],
        )
    )
    sql.execute(
        "INSERT INTO tenant_quotas (tenant_id, executions_running, updated_by) VALUES (%s, 9, %s)",
        (owner.id, owner.id),
    )
    async with orchestra.running(), attached(orchestra):
        assert execution_pb2.EXECUTION_STATUS_COMPLETED == (await run(orchestra, workflow)).status
    [(moved,)] = orchestra.rows("SELECT sum(moved_bytes)::int FROM tenant_usage")
    reference = len('{"$file":"00000000-0000-0000-0000-000000000000"}')
    assert 1 + (reference + 5000) * 2 + 100_002 == moved


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder on a disk, where the checkout lies on one."""
    folder = Path(tempfile.mkdtemp(dir=Path(__file__).parents[3], prefix=".disk-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


async def test_what_is_written_to_a_disk_is_told_by_node_run_and_sandbox(
    orchestra: Orchestra, disk: Path
) -> None:
    """The sandbox's own file systems are in memory: here it is given a folder on a disk."""
    env = {"QFLOW_TESTING": "1", "QFLOW_RUNNER_TEST_BIND": str(disk)}
    code = (
        "import os\n"
        "def main(x: int) -> int:\n"
        "    with open('/ledger/written', 'wb') as file:\n"
        "        file.write(bytes(1 << 20))\n"
        "        os.fsync(file.fileno())\n"
        "    return x\n"
    )
    async with orchestra.running(), attached(orchestra, **env):
        done = await run(orchestra, single(orchestra, code))
    assert execution_pb2.EXECUTION_STATUS_COMPLETED == done.status
    written = done.resource_usage.io_write_bytes
    if not written:
        pytest.skip("the folder of the checkout lies in memory")
    assert written >= 1 << 20
    for table in ("node_executions", "containers"):
        assert [(written,)] == orchestra.rows(
            f"SELECT (resource_usage ->> 'io_write_bytes')::bigint FROM {table}"
        )
