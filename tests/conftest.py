"""What every test may ask for, and what a run says at its end."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache

import pytest
import structlog

pytest_plugins = ["tests.support.servers", "tests.support.suite_fixtures"]

_WHOLE_SUITE = {"suite", "suite_factory"}


@cache
def docker_answers() -> bool:
    """Whether a Docker daemon can be reached from here."""
    docker = shutil.which("docker")
    if docker is None:
        return False
    asked = subprocess.run([docker, "info"], capture_output=True, check=False, timeout=20)
    return asked.returncode == 0


@pytest.fixture(autouse=True)
def _logs_are_each_tests_own() -> Iterator[None]:
    """A command that a test calls sets up the logs of the process that it takes itself for."""
    yield
    structlog.reset_defaults()


# First of all hooks, so that xdist sees the groups.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        # One process runs all tests that need the whole suite: two cores carry one, not two.
        if _WHOLE_SUITE & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group("suite"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("docker") and not docker_answers():
        if os.environ.get("QFLOW_REQUIRE_DOCKER"):
            pytest.fail("no Docker daemon answers, and QFLOW_REQUIRE_DOCKER is set")
        pytest.skip("no Docker daemon answers (`docker info`)")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped:
        return
    docker = [report for report in skipped if "Docker" in str(report.longrepr)]
    terminalreporter.section("NOT RUN", sep="!", yellow=True, bold=True)
    if docker:
        terminalreporter.line(
            f"{len(docker)} tests need Docker and did not run: start a daemon, then "
            "`make test-docker`",
            yellow=True,
        )
    if len(skipped) > len(docker):
        terminalreporter.line(f"{len(skipped) - len(docker)} others were skipped: see above")
