"""A service that is gone in the middle of what a client does: it goes on, or says so."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from qflow.client.client import Client
from qflow.client.contexts import of_home

from tests.support.suite import Suite
from tests.support.suite_fixtures import SuiteFactory

pytestmark = pytest.mark.slow

SIZE_BYTES = 32 * 1024 * 1024
FLOWS = """
import time

import qflow


@qflow.node(name="cuts: linger")
def linger(x: int) -> int:
    time.sleep(4)
    return x + 1


@qflow.workflow(name="cuts: lingering")
def lingering(x: int) -> int:
    return linger(x)
"""


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file of which no two parts are the same."""
    path = tmp_path_factory.mktemp("cuts") / "content"
    with path.open("wb") as stream:
        for number in range(SIZE_BYTES // 32):
            stream.write(hashlib.sha256(number.to_bytes(4, "big")).digest())
    yield path
    path.unlink()


async def test_a_runner_that_dies_in_the_middle_cuts_neither_an_upload_nor_a_download(
    suite_factory: SuiteFactory, content: Path, tmp_path: Path
) -> None:
    suite = suite_factory()
    struck: list[str] = []

    def strike(what: str, done: int, whole: int) -> None:
        if what not in struck and done * 2 > whole:
            struck.append(what)
            suite.kill_service("runner")

    async with Client(of_home(suite.home.root)) as client:
        file = await client.files.upload(
            content, progress=lambda done, whole: strike("upload", done, whole)
        )
        await client.files.download(
            file.id, tmp_path / "back", progress=lambda done, whole: strike("download", done, whole)
        )
    assert ["upload", "download"] == struck
    with content.open("rb") as sent, (tmp_path / "back").open("rb") as came:
        assert hashlib.file_digest(sent, "sha256").digest() == (
            hashlib.file_digest(came, "sha256").digest()
        )
    assert ["back"] == os.listdir(tmp_path)  # noqa: PTH208  # which an event loop may wait for


def test_a_watch_in_a_terminal_outlives_the_orchestrator(
    suite_factory: SuiteFactory, tmp_path: Path
) -> None:
    suite = suite_factory()
    flows = tmp_path / "flows.py"
    flows.write_text(FLOWS)
    running = watched(suite, flows)
    assert running.stderr is not None
    for line in running.stderr:
        if "running" in line:
            break
    before = suite.kill_service("orchestrator", signal.SIGKILL)
    out, rest = running.communicate(timeout=90)
    assert (0, '{"result":2}\n') == (running.returncode, out), rest
    suite.wait_restarted("orchestrator", before)


def watched(suite: Suite, flows: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "qflow", "run", str(flows), "x=1", "--watch"],
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(flows.parent),
            "QFLOW_HOME": str(suite.home.root),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
