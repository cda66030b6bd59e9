from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from services.standalone import process
from services.standalone.children import backoff_s
from services.standalone.process import ProcessMark, wait_until

ENV = {"PATH": os.defpath}
FOREVER = [sys.executable, "-c", "import time; time.sleep(600)"]


async def test_the_end_of_a_child_is_noticed_with_its_code(tmp_path: Path) -> None:
    child = process.start(["/bin/sh", "-c", "echo said; exit 7"], log=tmp_path / "log", env=ENV)
    assert await process.wait(child) == 7
    assert await process.wait(child) == 7
    assert (tmp_path / "log").read_text() == "said\n"


async def test_waiting_for_a_child_can_be_given_up(tmp_path: Path) -> None:
    child = process.start(FOREVER, log=tmp_path / "log", env=ENV)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(process.wait(child), 0.01)
    child.kill()
    assert await process.wait(child) == -signal.SIGKILL


def test_a_child_dies_with_the_parent_that_is_killed(tmp_path: Path) -> None:
    """F3 for the suite itself: no leftovers of a kill -9."""
    program = f"""
import os
from services.standalone import process
child = process.start({FOREVER!r}, log=None, env=dict(os.environ))
print(child.pid, flush=True)
child.wait()
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    mark = ProcessMark.of(int(parent.stdout.readline()))
    assert mark is not None
    parent.kill()
    parent.communicate()
    assert wait_until(lambda: not mark.is_alive(), timeout_s=30.0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused by PostgreSQL")
def test_as_root_a_child_runs_as_an_ordinary_user_with_our_rights_to_files(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.write_text("mine")
    private.chmod(0o600)
    child = process.start(
        ["/bin/sh", "-c", f"id -u; cat {private}"],
        log=tmp_path / "log",
        env=ENV,
        identity="namespace:1000",
    )
    if child.wait() == 126:
        pytest.skip("user namespaces are barred here: " + process.tail(tmp_path / "log"))
    assert (tmp_path / "log").read_text() == "1000\nmine"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_as_root_without_namespaces_a_child_drops_to_another_user(tmp_path: Path) -> None:
    child = process.start(
        ["/bin/sh", "-c", "id -u; id -g; id -G"],
        log=tmp_path / "log",
        env=ENV,
        identity="65432:65433",
    )
    assert child.wait() == 0
    assert (tmp_path / "log").read_text().split() == ["65432", "65433", "65433"]


def test_a_program_that_is_not_there_is_named_in_the_log(tmp_path: Path) -> None:
    child = process.start(["/no/such/program"], log=tmp_path / "log", env=ENV)
    assert child.wait() == 126
    assert "/no/such/program" in process.tail(tmp_path / "log")


def test_a_stubborn_process_is_ended_by_the_last_step_of_the_ladder(tmp_path: Path) -> None:
    child = process.start(
        ["/bin/sh", "-c", "trap '' TERM; echo ready; while :; do read x; done < /dev/zero"],
        log=tmp_path / "log",
        env=ENV,
    )
    assert wait_until(lambda: "ready" in process.tail(tmp_path / "log"), timeout_s=30.0)
    mark = ProcessMark.of(child.pid)
    assert mark is not None
    assert mark.end([(signal.SIGTERM, 0.05), (signal.SIGKILL, 5.0)])
    assert child.wait() == -signal.SIGKILL


def test_a_log_over_its_cap_keeps_its_end_in_one_predecessor(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    with log.open("ab") as writer:  # as a child holds it
        writer.write(b"x" * 90 + b"the end of it")
        writer.flush()
        process.cap_log(log, bytes_max=100)
        writer.write(b"next")
        writer.flush()
    assert log.read_bytes() == b"next"
    assert (tmp_path / "a.log.1").read_bytes().endswith(b"the end of it")
    assert len((tmp_path / "a.log.1").read_bytes()) == 50


def test_a_crash_loop_waits_longer_each_time_up_to_the_longest_pause() -> None:
    pauses = [backoff_s(n, max_s=30.0) for n in range(1, 11)]
    assert pauses == [0, 0.25, 0.5, 1, 2, 4, 8, 16, 30, 30]
