"""gRPC's transport is the one that the services choose, and this gRPC knows it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import services

ROOT = Path(__file__).parents[3]
_IMPORTED_FIRST = "import sys, services; assert 'grpc' not in sys.modules"
_PRINTED = "import os; print(os.environ['GRPC_EXPERIMENTS'])"


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join((str(ROOT), str(ROOT / "clients/python")))
    inherited = {name: value for name, value in os.environ.items() if name != "GRPC_EXPERIMENTS"}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, "PYTHONPATH": paths, **env},
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.parametrize("service", ["registry", "orchestrator", "runner", "telemetry"])
def test_a_service_chooses_the_transport_before_grpc_is_imported(service: str) -> None:
    told = python(f"{_IMPORTED_FIRST}\nimport services.{service}.app\n{_PRINTED}")
    assert told.stdout.strip() == services.TRANSPORT


def test_this_version_of_grpc_knows_what_is_chosen() -> None:
    channel = "import services, grpc; grpc.insecure_channel('unix:/x').close()"
    assert "experiment" not in python(channel).stderr
    assert "experiment" in python(channel, GRPC_EXPERIMENTS="-no_such_poller").stderr


def test_an_operator_may_choose_another_transport() -> None:
    told = python(f"import services\n{_PRINTED}", GRPC_EXPERIMENTS="event_engine_listener")
    assert told.stdout.strip() == "event_engine_listener"
