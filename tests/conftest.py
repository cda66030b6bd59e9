"""What every test may ask for, and what a run says at its end."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache

import hypothesis
import pytest
import structlog
from xdist.remote import Producer

from tests.support.sharing import SUITE, ByFile, unit_of

pytest_plugins = ["tests.support.servers", "tests.support.suite_fixtures"]

_WHOLE_SUITE = {"suite", "suite_factory"}

# How long an example takes says nothing on a machine that others use too. The same examples each
# time, but where there is time for others.
hypothesis.settings.register_profile(
    "suite", deadline=None, derandomize=not os.environ.get("QFLOW_TEST_FULL"), database=None
)
hypothesis.settings.load_profile("suite")


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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile | None:
    return ByFile(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        uses_it = _WHOLE_SUITE & set(getattr(item, "fixturenames", ()))
        if uses_it and unit_of(item.nodeid.split("::", 1)[0]) != SUITE:
            raise pytest.UsageError(f"{item.nodeid}: import the type of the suite that it uses")


def pytest_collection_finish() -> None:
    """Look for garbage no more among all that was imported and collected, as services do.

    That takes a second of the processor each time, in whatever test it happens to come.
    """
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("docker") and not docker_answers():
        if os.environ.get("QFLOW_REQUIRE_DOCKER"):
            pytest.fail("no Docker daemon responds, and QFLOW_REQUIRE_DOCKER is set")
        pytest.skip("no Docker daemon responds (`docker info`)")


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
