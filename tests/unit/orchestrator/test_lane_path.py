"""Where an orchestrator's lanes begin."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.orchestrator.settings import Settings


@pytest.mark.parametrize(
    ("listen", "path"),
    [
        ("unix:/run/q/attach.sock", "/run/q/attach.lane"),
        ("unix:///run/q/attach-00.sock", "/run/q/attach-00.lane"),
        ("unix:/run/q/attach.lane", "/run/q/attach.lanes"),  # never that socket itself
        ("0.0.0.0:7112", "/home/q/run/attach.lane"),
        (None, "/home/q/run/attach.lane"),
    ],
)
def test_they_begin_beside_the_socket_of_streams_else_in_the_home(
    listen: str | None, path: str
) -> None:
    env = {
        "QFLOW_HOME": "/home/q",
        "QFLOW_ORCHESTRATOR_DATABASE_URL": "postgresql://q@h/d",
        "QFLOW_ORCHESTRATOR_ENGINE_DATABASE_URL": "postgresql://q@h/d",
    }
    if listen is not None:
        env["QFLOW_ORCHESTRATOR_ATTACH_LISTEN"] = listen
    settings = Settings.from_env(env)
    assert Path(path) == settings.lane_path
    assert settings.attach_lane
    assert not Settings.from_env(env | {"QFLOW_ORCHESTRATOR_ATTACH_LANE": "0"}).attach_lane
