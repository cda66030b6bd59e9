"""What the suite is made of is pinned, down to the bytes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
_PINNED = re.compile(r"^(?P<name>[a-z0-9][a-z0-9._-]*(\[[a-z0-9,._-]+\])?)==(?P<version>\S+)")
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}\b")


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_package_of_a_lock_has_one_version_and_its_hashes(lock: Path) -> None:
    """X54."""
    joined = lock.read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line.strip() and line.strip()[0] != "#"]
    assert len(lines) > 10
    for line in lines:
        assert _PINNED.match(line), line
        assert _HASH.search(line), line


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_names_no_index_and_no_file(lock: Path) -> None:
    """X54: which index is asked is the deployment's, and nothing is taken from a path or a link."""
    text = lock.read_text("utf-8")
    for word in ("--index-url", "--extra-index-url", "--find-links", "://", "file:", " @ "):
        assert word not in text, word


def test_what_the_suite_runs_on_is_a_part_of_what_it_is_tested_with() -> None:
    """X54: the same versions, so that what was tested is what runs."""
    run, dev = (_versions(ROOT / "requirements" / f"{name}.lock") for name in ("run", "dev"))
    assert run.items() <= dev.items()


def _versions(lock: Path) -> dict[str, str]:
    joined = lock.read_text("utf-8").replace("\\\n", " ")
    found = (_PINNED.match(line) for line in joined.splitlines())
    return {each["name"]: each["version"] for each in found if each}


def test_the_bill_of_materials_names_every_package_of_the_lock_and_is_the_same_each_time() -> None:
    """X54."""
    first, second = (_ran("bill_of_materials.py").stdout for _ in range(2))
    assert first == second
    told = json.loads(first)
    assert ("CycloneDX", "1.6") == (told["bomFormat"], told["specVersion"])
    shown = {each["name"]: each for each in told["components"] if each["type"] == "library"}
    locked = _versions(ROOT / "requirements" / "run.lock")
    assert {_plain(name): version for name, version in locked.items()} == {
        name: each["version"] for name, each in shown.items()
    }
    for name, each in shown.items():
        assert any(way["hashes"] for way in each["externalReferences"]), name


@pytest.mark.parametrize(
    ("answers", "code", "said"),
    [
        ({"dependencies": [{"name": "a", "version": "1", "vulns": []}]}, 0, "0 with known"),
        (
            {
                "dependencies": [
                    {"name": "a", "version": "1", "vulns": [{"id": "V-1", "fix_versions": ["2"]}]}
                ]
            },
            1,
            "a 1: V-1 (fixed in 2)",
        ),
        ({"dependencies": [{"name": "a", "skip_reason": "unknown"}]}, 3, "NOT AUDITED"),
        (None, 3, "NOT AUDITED"),
    ],
    ids=["clean", "vulnerable", "a mirror that knows none", "nobody answers"],
)
def test_that_nobody_could_be_asked_is_never_a_clean_audit(
    tmp_path: Path, answers: object, code: int, said: str
) -> None:
    """X54: the program that asks is played by one that answers so."""
    (tmp_path / "pip_audit.py").write_text(f"print({json.dumps(answers)!r})\n", "utf-8")
    ended = _ran("audit.py", "a.lock", PYTHONPATH=str(tmp_path))
    assert code == ended.returncode
    assert said in ended.stdout


def _ran(program: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "requirements" / program, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def _plain(name: str) -> str:
    return name.partition("[")[0]
