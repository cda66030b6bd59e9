"""What the suite is made of is pinned, down to the bytes."""

from __future__ import annotations

import re
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
