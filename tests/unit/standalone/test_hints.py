"""What is printed to be copied works as it stands."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from services.standalone import demo, hints
from services.standalone.process import StandaloneError

CHECKOUT = Path(__file__).resolve().parents[3]


def test_in_the_checkout_commands_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CHECKOUT)
    monkeypatch.setattr(sys, "executable", str(CHECKOUT / ".venv/bin/python"))
    home = CHECKOUT / ".qflow"
    assert "make run" == hints.make("run", home=home, env={})
    assert ".venv/bin/python -m services.standalone status" == hints.standalone("status", home=home)


def test_elsewhere_they_name_their_folders_home_and_ports(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", "/opt/q/bin/python")
    home = Path("/srv/my home")
    run = hints.make("run", home=home, env={"QFLOW_PORT_BASE": "7200"})
    assert f"QFLOW_HOME='/srv/my home' QFLOW_PORT_BASE=7200 make -C {CHECKOUT} run" == run
    token = hints.standalone("token", home=home)
    assert "QFLOW_HOME='/srv/my home' /opt/q/bin/python -m services.standalone token" == token


def test_a_demo_whose_ports_are_taken_moves_to_others_and_says_so() -> None:
    said: list[str] = []
    with _taken() as port:
        env = {"QFLOW_PORT_BASE": str(port - 2)}
        moved = demo._on_free_ports(env, say=said.append)
    base = int(moved["QFLOW_PORT_BASE"])
    assert [f"Port {port} is taken: this demo listens on {base + 1} to {base + 4}."] == said
    assert moved == demo._on_free_ports(moved, say=said.append)


def test_a_demo_does_not_move_from_an_address_that_was_asked_for() -> None:
    with _taken() as port, pytest.raises(StandaloneError, match=f"port {port} is taken"):
        demo._on_free_ports({"QFLOW_RUNNER_LISTEN": f"127.0.0.1:{port}"}, say=print)


class _taken:  # noqa: N801 - reads as a sentence
    """A port on which somebody listens."""

    def __enter__(self) -> int:
        self._other = socket.create_server(("127.0.0.1", 0))
        port: int = self._other.getsockname()[1]
        return port

    def __exit__(self, *_: object) -> None:
        self._other.close()
