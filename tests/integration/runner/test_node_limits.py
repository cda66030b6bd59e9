"""What a node may use is what it asks for, and no more than the deployment allows."""

from __future__ import annotations

import json
from typing import Any

from qflow.orchestrator.v1 import execution_pb2

from services.runner.domain.limits import Asked, Limits, limits_of
from tests.integration.orchestrator.conftest import Orchestra, orchestra
from tests.integration.runner.test_attach import attached, run, single

__all__ = ["orchestra"]

_FORKS = """
import os, time
def main(x: int) -> int:
    made = []
    try:
        while len(made) < 200:
            pid = os.fork()
            if pid == 0:
                time.sleep(600)
            made.append(pid)
    except OSError:
        pass
    return len(made)
"""


async def _result(
    orchestra: Orchestra, code: str, limits: dict[str, int], **env: str
) -> tuple[Any, dict[str, Any]]:
    """What the node returned, and what its sandbox's row says of its limits."""
    async with orchestra.running(), attached(orchestra, **env):
        done = await run(orchestra, single(orchestra, code, limits=limits))
    assert execution_pb2.EXECUTION_STATUS_COMPLETED == done.status, done
    [(told,)] = orchestra.rows("SELECT resource_limits FROM containers")
    return json.loads(done.output_json)["out"], dict(told)  # type: ignore[call-overload]


async def test_a_share_of_the_processors_is_kept(orchestra: Orchestra) -> None:
    """B115: many busy threads get no more than the node's share."""
    busy, told = await _result(
        orchestra,
        "import threading, time\n"
        "def burn(until):\n"
        "    while time.monotonic() < until: sum(range(1000))\n"
        "def main(x: int) -> int:\n"
        "    until = time.monotonic() + 1.5\n"
        "    threads = [threading.Thread(target=burn, args=(until,)) for _ in range(16)]\n"
        "    for each in threads: each.start()\n"
        "    for each in threads: each.join()\n"
        "    return round(time.process_time() * 1000)\n",
        {"cpu_millicores": 100},
    )
    assert busy < 600  # ms, of 1.5 s, and of a start that is paid from the same share
    assert 100 == told["cpu_millicores"]


async def test_no_more_processes_are_made_than_the_node_may_have(orchestra: Orchestra) -> None:
    """B95."""
    made, told = await _result(orchestra, _FORKS, {"processes": 12})
    assert 0 < made < 12
    assert 12 == told["pids"]


async def test_no_more_files_are_opened_than_the_node_may_have(orchestra: Orchestra) -> None:
    """B101."""
    held, told = await _result(
        orchestra,
        "import os\n"
        "def main(x: int) -> int:\n"
        "    held = []\n"
        "    try:\n"
        "        while len(held) < 10_000: held.append(os.dup(1))\n"
        "    except OSError:\n"
        "        pass\n"
        "    for each in held: os.close(each)\n"
        "    return len(held)\n",
        {"open_files": 100},
    )
    assert 0 < held < 100
    assert 100 == told["open_files"]


async def test_no_more_is_written_than_the_node_may_keep(orchestra: Orchestra) -> None:
    """B69, B100, F28: what unpacks a bomb meets the end of its own file system."""
    written, told = await _result(
        orchestra,
        "import io, zipfile\n"
        "def main(x: int) -> int:\n"
        "    packed = io.BytesIO()\n"
        "    with zipfile.ZipFile(packed, 'w', zipfile.ZIP_DEFLATED) as bomb:\n"
        "        bomb.writestr('zeros', bytes(64 << 20))\n"
        "    count = 0\n"
        "    try:\n"
        "        with zipfile.ZipFile(packed) as bomb, bomb.open('zeros') as inside:\n"
        "            with open('/tmp/out', 'wb', buffering=0) as out:\n"
        "                while piece := inside.read(65536): count += out.write(piece)\n"
        "    except OSError as problem:\n"
        "        assert problem.errno == 28\n"
        "    return count\n",
        {"temporary_bytes": 4 << 20},
    )
    assert 0 < written <= 4 << 20
    assert 4 << 20 == told["temporary_bytes"]


async def test_an_output_beyond_its_limit_fails_the_node(orchestra: Orchestra) -> None:
    """F28."""
    code = "def main(x: int) -> int:\n    return 10**x\n"
    async with orchestra.running(), attached(orchestra):
        workflow = single(orchestra, code, limits={"output_bytes": 2000})
        fits = await run(orchestra, workflow, 1999)
        assert execution_pb2.EXECUTION_STATUS_COMPLETED == fits.status, fits
        done = await run(orchestra, workflow, 2000)
    assert execution_pb2.EXECUTION_STATUS_FAILED == done.status
    assert "output_too_large" == done.error.error_type


async def test_a_deployment_allows_no_more_than_it_says(orchestra: Orchestra) -> None:
    """X20."""
    made, told = await _result(
        orchestra,
        _FORKS,
        {"processes": 100},
        QFLOW_NODE_PROCESSES_MAX="10",
        QFLOW_NODE_MEMORY_BYTES_MAX=str(100 << 20),
    )
    assert 0 < made < 10
    assert [10, 100 << 20] == [told["pids"], told["memory_bytes"]]


async def test_a_deployment_lets_no_attempt_take_longer_than_it_says(orchestra: Orchestra) -> None:
    """X20: the node asks for an hour."""
    code = "import time\ndef main(x: int) -> int:\n    time.sleep(600)\n    return x\n"
    async with orchestra.running(), attached(orchestra, QFLOW_NODE_TIMEOUT_S_MAX="0.5"):
        done = await run(orchestra, single(orchestra, code, timeout_ms=3_600_000))
    assert execution_pb2.EXECUTION_STATUS_FAILED == done.status
    assert ("timeout", "the attempt took longer than 0.5 s") == (
        done.error.error_type,
        done.error.message,
    )


def test_what_is_in_force_is_asked_for_or_the_default_within_caps_that_let_it_start() -> None:
    assert Limits() == limits_of(Asked(), Asked())
    assert 7 << 30 == limits_of(Asked(memory_bytes=7 << 30), Asked()).memory_bytes
    assert 250 == limits_of(Asked(), Asked(cpu_millicores=250)).cpu_millicores
    assert 100 == limits_of(Asked(cpu_millicores=100), Asked(cpu_millicores=250)).cpu_millicores
    assert 4 == limits_of(Asked(processes=1), Asked()).processes
