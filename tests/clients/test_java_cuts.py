"""The client for Java tells every cut connection alike: it can be waited out, and calls say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.builds import ROOT, built, run

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]


def test_a_connection_that_closes_under_a_write_is_unavailable(tmp_path: Path) -> None:
    java, option, path, _ = built("java")
    check = ROOT / "tests" / "clients" / "java" / "CutsCheck.java"
    run(["javac", "-encoding", "UTF-8", "-cp", path, "-d", tmp_path, check])
    said = run([java, option, f"{tmp_path}:{path}", "dev.qflow.client.CutsCheck"])
    assert [
        "cut while writing: UNAVAILABLE",
        "said by a service: UNKNOWN",
        "refused: NOT_FOUND",
    ] == said.splitlines()
