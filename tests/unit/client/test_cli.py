"""What the command `qflow` does before and without any server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from qflow.cli import watching
from qflow.cli.app import app, main
from qflow.cli.commands import in_shell
from qflow.cli.schedules import state_of
from qflow.client import connection
from qflow.orchestrator.v1.schedule_pb2 import Schedule


@pytest.fixture(autouse=True)
def _nobodys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("QFLOW_TOKEN", "QFLOW_HOME", "QFLOW_CONTEXT", "QFLOW_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("QFLOW_CONFIG", str(tmp_path / "contexts.json"))


@pytest.mark.parametrize(
    "address", ["192.0.2.7:7101", "qflow.example.org:7101", "[2001:db8::1]:7101"]
)
@pytest.mark.parametrize("how", [("--email=a@example.org",), ("--token=qft_x",)])
def test_no_password_and_no_token_goes_to_another_machine_in_plain_text(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    how: tuple[str, ...],
) -> None:
    monkeypatch.setattr("typer.prompt", lambda *_a, **_k: pytest.fail("it asked for a password"))
    assert 2 == main(["login", address, *how])
    said = capsys.readouterr().err
    assert f"{address} is another machine" in said
    assert "--ca-file" in said


def test_one_service_elsewhere_is_enough_to_refuse(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["login", "127.0.0.1:7101", "--token=x", "--runner=192.0.2.7:7103"]
    assert 2 == main(arguments)
    assert "192.0.2.7:7103 is another machine" in capsys.readouterr().err


def test_an_address_given_by_email_is_not_overruled_by_a_token_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def prompt(text: str, **_options: Any) -> str:
        asked.append(text)
        raise KeyboardInterrupt

    monkeypatch.setenv("QFLOW_TOKEN", "qft_of_somebody_else")
    monkeypatch.setattr("typer.prompt", prompt)
    assert 130 == main(["login", "127.0.0.1:1", "--email=ada@example.org"])
    assert ["Password"] == asked


def test_an_email_and_a_token_are_one_too_many(capsys: pytest.CaptureFixture[str]) -> None:
    assert 2 == main(["login", "127.0.0.1:1", "--email=a@example.org", "--token=x"])
    assert "not with both" in capsys.readouterr().err


async def test_ctrl_c_while_a_run_is_started_waits_for_its_id() -> None:
    sent, answered = asyncio.Event(), asyncio.Event()

    async def starting() -> Any:
        sent.set()
        await answered.wait()
        return "the run"

    begun = asyncio.create_task(watching.begun(starting()))
    await sent.wait()
    begun.cancel()
    await asyncio.sleep(0)
    assert not begun.done()
    answered.set()
    found: tuple[Any, bool] = await begun
    assert ("the run", True) == found


async def test_a_start_that_nobody_answers_does_not_hold_whoever_leaves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watching, "_START_S", 0.01)
    sent = asyncio.Event()

    async def starting() -> Any:
        sent.set()
        await asyncio.Event().wait()

    begun = asyncio.create_task(watching.begun(starting()))
    await sent.wait()
    begun.cancel()
    with pytest.raises(asyncio.CancelledError):
        await begun
    assert "the run may have begun" in capsys.readouterr().err


def test_a_peer_that_is_gone_is_noticed_and_servers_are_not_pinged_too_often() -> None:
    kept = dict(connection._KEEPALIVE)
    assert 30_000 < kept["grpc.keepalive_time_ms"] <= 60_000
    assert kept["grpc.keepalive_timeout_ms"] <= 20_000
    assert 0 == kept["grpc.http2.max_pings_without_data"]


def test_the_value_of_a_signal_may_be_negative(capsys: pytest.CaptureFixture[str]) -> None:
    """It is taken, and then nobody is there to be told."""
    assert main(["signal", "00000000-0000-4000-8000-000000000001", "paid", "-5"]) != 0
    told = capsys.readouterr().err
    assert "-5" not in told
    assert "option" not in told.lower()


def test_every_command_speaks_json() -> None:
    """All but `up`, which stays until it is stopped."""

    def commands(group: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        for name, each in group.commands.items():
            if hasattr(each, "commands"):
                yield from commands(each, (*path, name))
            else:
                yield " ".join((*path, name)), each

    there = dict(commands(typer.main.get_command(app), ()))
    assert {"run", "schedule pause", "context rm", "files rm", "doctor"} <= set(there)
    mute = {
        name for name, each in there.items() if all("--json" not in p.opts for p in each.params)
    }
    assert {"up"} == mute


@pytest.mark.parametrize(
    ("action", "told"),
    [
        ("mend the code; then RerunExecution", "mend the code; then `qflow rerun`"),
        (
            "mend it, then RerunExecution from it with node_version 0; or RerunExecution alone",
            "mend it, then `qflow rerun --from NODE --newest`; or `qflow rerun` alone",
        ),
        ("let it go on with ResumeExecution", "let it go on with `qflow resume`"),
        ("start a runner", "start a runner"),
        ("no such run; ListExecutions shows", "no such run; `qflow ls` shows"),
        ("BatchStartExecutions takes fewer", "BatchStartExecutions takes fewer"),
    ],
)
def test_what_helps_is_told_as_a_command(action: str, told: str) -> None:
    assert in_shell(action) == told


def test_a_schedule_that_is_not_due_again_is_over() -> None:
    due = Schedule()
    due.next_time.GetCurrentTime()
    states = [state_of(each) for each in (Schedule(paused=True), due, Schedule())]
    assert ["paused", "on", "over"] == states


@pytest.mark.parametrize("every", ["99999999999d", "9" * 5000 + "s", "315576000001s"])
def test_an_interval_longer_than_the_contract_has_is_refused_in_words(
    capsys: pytest.CaptureFixture[str], every: str
) -> None:
    assert 2 == main(["schedule", "create", "order", "--every", every])
    assert "is too long: at most 315576000000s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ((), "say what to change"),
        (("--cron", "0 6 * * *", "--every", "1h"), "either --cron or --every"),
        (("--every", "1h", "--zone", "UTC"), "--zone is of --cron"),
        (("left",), "an input is NAME=VALUE, not 'left'"),
        (("--overlap", "x"), "--overlap is one of skip, buffer_one, allow, cancel_running"),
    ],
)
def test_a_change_of_a_schedule_that_is_none_is_told_before_anybody_is_asked(
    capsys: pytest.CaptureFixture[str], wrong: tuple[str, ...], told: str
) -> None:
    assert 2 == main(["schedule", "set", "x", *wrong])
    assert told in capsys.readouterr().err


def test_a_preview_shows_as_many_times_as_the_contract_gives(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert 2 == main(["schedule", "preview", "x", "--count", "101"])
    assert "1<=x<=100" in capsys.readouterr().err


def test_the_doctor_is_asked_of_some_invariants(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert 0 != main(["doctor", "I4", "I9", f"--home={tmp_path}"])  # no suite is there
    assert "unexpected extra argument" not in capsys.readouterr().err
