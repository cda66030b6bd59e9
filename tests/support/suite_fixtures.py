"""The whole suite for acceptance and fault tests."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.furnished import furnish
from tests.support.leaks import examined
from tests.support.suite import Suite

# Leases that lapse soon, and processes that are started again soon however often a test kills them.
QUICK = {"QFLOW_LEASE_TTL_S": "3", "QFLOW_RESTART_PAUSE_MAX_S": "0.5"}

SuiteFactory = Callable[..., Suite]
_SHARED = pytest.StashKey[Suite | None]()
_KNOWN = pytest.StashKey[dict[str, list[Any]]]()


def discard(folder: Path) -> None:
    """Remove a suite's folder, logs and all; QFLOW_TEST_KEEP=1 keeps it to be looked into."""
    if os.environ.get("QFLOW_TEST_KEEP"):
        sys.stderr.write(f"kept {folder}\n")
    else:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def _the_suite_is_examined(request: pytest.FixtureRequest) -> Iterator[None]:
    """What the tests of a module did to the shared suite left nothing behind, and broke nothing.

    A module says in `PLANTS` which kinds of leaks it makes on purpose. What one module has left
    is not held against those after it.
    """
    stash = request.session.stash
    yield
    shared = stash.get(_SHARED, None) if _uses_suite(request) else None
    if shared is None:
        return
    known = stash.setdefault(_KNOWN, {})
    planted = frozenset[str](getattr(request.module, "PLANTS", ()))
    found = examined(shared, known, planted=planted)
    for kind, rows in found.items():
        known.setdefault(kind, []).extend(rows)
    assert {} == {kind: rows for kind, rows in found.items() if kind not in planted}, (
        f"after {request.node.name}"
    )


def _uses_suite(request: pytest.FixtureRequest) -> bool:
    """Whether a test of the module that is over had the shared suite."""
    return any(
        item.path == request.path and "suite" in getattr(item, "fixturenames", ())
        for item in request.session.items
    )


@pytest.fixture(scope="session")
def suite(request: pytest.FixtureRequest) -> Iterator[Suite]:
    """One running suite for all tests that leave it as they found it."""
    folder = Path(tempfile.mkdtemp(prefix="qfs-", dir="/tmp"))
    running = Suite(folder)
    try:
        shared = running.start()
        request.session.stash[_SHARED] = shared
        yield shared
    finally:
        request.session.stash[_SHARED] = None
        running.stop()
        discard(folder)


@pytest.fixture
def suite_factory() -> Iterator[SuiteFactory]:
    """Makes suites to hurt: `suite_factory()` starts one; `env=` and `start=False` as needed."""
    made: list[Suite] = []
    folders: list[Path] = []

    def make(
        *, env: dict[str, str] | None = None, folder: Path | None = None, start: bool = True
    ) -> Suite:
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="qff-", dir="/tmp"))
            folders.append(folder)
            furnish(folder, env or {})
        one = Suite(folder, {**QUICK, **(env or {})})
        made.append(one)
        return one.start() if start else one

    yield make
    for one in reversed(made):
        one.stop()
    for folder in folders:
        discard(folder)
