"""Lines of calls are flushed together, soon, and in their order among all others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
_LOGGED = """
import asyncio, structlog
from services.kit import log
log.configure("tiny")
async def main():
    log.write_line("debug", "not_asked_for", {})
    log.write_line("info", "call_ended", {"code": "OK"})
    structlog.get_logger().info("something_said")
    log.write_line("warning", "call_ended", {"code": "INTERNAL"})
    await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_the_line_of_a_call_is_read_while_the_service_goes_on(unbuffered: str) -> None:
    paths = os.pathsep.join((str(ROOT), str(ROOT / "clients/python")))
    process = subprocess.Popen(
        [sys.executable, "-c", _LOGGED],
        env={**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": unbuffered},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        lines = [json.loads(process.stdout.readline()) for _ in range(3)]
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()
    assert ["call_ended", "something_said", "call_ended"] == [line["event"] for line in lines]
    assert ["OK", None, "INTERNAL"] == [line.get("code") for line in lines]
    assert ["info", "info", "warning"] == [line["level"] for line in lines]
    assert all(line["service"] == "tiny" and line["timestamp"].endswith("Z") for line in lines)
