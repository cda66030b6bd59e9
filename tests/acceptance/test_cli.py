"""The command `qflow`, as a shell calls it."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from qflow.runner.v1 import environment_service_pb2 as pb
from qflow.runner.v1.environment_service_pb2_grpc import EnvironmentServiceStub

from tests.acceptance.conftest import Qflow
from tests.support.suite import Suite

FLOWS = """
from __future__ import annotations

import enum
import time
from decimal import Decimal

import qflow


class Mood(enum.Enum):
    GOOD = "good"


@qflow.node(name="cli test: bill")
def bill(amount: Decimal, zip_code: str, mood: Mood) -> str:
    return f"{amount} {zip_code} {mood.name}"


@qflow.workflow(name="cli test: billed")
def billed(amount: Decimal, zip_code: str, mood: Mood) -> str:
    return bill(amount, zip_code, mood)


@qflow.node(name="cli test: shout")
def shout(word: str, times: int = 1) -> str:
    print("shouting", word)
    return word.upper() * times


@qflow.node(name="cli test: fail")
def fail(word: str) -> str:
    raise ValueError("never " + word)


@qflow.node(name="cli test: linger")
def linger(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@qflow.workflow(name="cli test: loud")
def loud(word: str) -> str:
    return shout(shout(word))


@qflow.workflow(name="cli test: all loud")
def all_loud(words: list[str]) -> list[str]:
    return loud.map(words)


@qflow.workflow(name="cli test: failing")
def failing(word: str) -> str:
    return fail(word)


@qflow.workflow(name="cli test: lingering")
def lingering(seconds: float) -> float:
    return linger(seconds)
"""


@pytest.fixture
def flows(tmp_path: Path) -> Path:
    path = tmp_path / "flows.py"
    path.write_text(FLOWS, "utf-8")
    return path


def test_a_file_is_run_and_its_output_is_all_that_is_printed(qflow: Qflow, flows: Path) -> None:
    done = qflow("run", f"{flows}:loud", "word=hé")
    assert (0, '{"result":"HÉ"}\n') == (done.returncode, done.stdout)
    local = qflow("run", f"{flows}:loud", "word=hé", "--local")
    assert (0, "HÉ") == (local.returncode, json.loads(local.stdout.splitlines()[-1]))


def test_a_stored_workflow_takes_inputs_of_every_type_by_its_name(
    qflow: Qflow, flows: Path
) -> None:
    """As the file itself does; numbers to people that are texts as JSON has them need no quotes."""
    given = ("amount=12.50", "zip_code=01234", "mood=good")
    for workflow in (f"{flows}:billed", "cli test: billed"):
        done = qflow("run", workflow, *given)
        assert (0, '{"result":"12.50 01234 GOOD"}\n') == (done.returncode, done.stdout)
    assert 0 == qflow("plan", "cli test: billed", *given).returncode


def test_a_watch_in_a_pipe_is_a_line_per_change_beside_the_output(
    qflow: Qflow, flows: Path
) -> None:
    done = qflow("run", f"{flows}:loud", "word=a", "--watch")
    assert '{"result":"A"}\n' == done.stdout
    assert "\x1b" not in done.stderr
    assert [["shout", "completed"], ["shout_2", "completed"]] == [
        line.split()[:2] for line in done.stderr.splitlines() if "completed" in line
    ]


def test_a_failure_has_its_code_its_place_and_the_frames(qflow: Qflow, flows: Path) -> None:
    done = qflow("run", f"{flows}:failing", "word=x")
    assert (1, "") == (done.returncode, done.stdout)
    assert "failed at fail: ValueError: never x" in done.stderr or "never x" in done.stderr
    assert 'raise ValueError("never " + word)' in done.stderr
    run = done.stderr.split()[-1]
    assert f"qflow explain {run}" in done.stderr
    assert "node fail failed" in qflow("explain", run).stdout


def test_a_file_that_was_not_stored_is_named_with_what_stores_it(qflow: Qflow, flows: Path) -> None:
    told = qflow("plan", f"{flows}:loud", "word=a")
    assert (2, True) == (told.returncode, f"qflow workflow push {flows}:loud" in told.stderr)


def test_what_was_pushed_is_listed_shown_drawn_and_run_by_name(qflow: Qflow, flows: Path) -> None:
    pushed = json.loads(qflow("workflow", "push", f"{flows}:loud", "--json").stdout)
    again = json.loads(qflow("workflow", "push", f"{flows}:loud", "--json").stdout)
    assert [(each["id"], each["version"]) for each in pushed] == [
        (each["id"], each["version"]) for each in again
    ]
    listed = json.loads(qflow("workflow", "ls", 'name : "cli test: loud"', "--json").stdout)
    assert pushed[0]["id"] in [each["id"] for each in listed]
    shown = qflow("workflow", "show", "cli test: loud").stdout
    assert "└─► shout_2" in shown
    assert "└─► shout_2" in qflow("graph", f"{flows}:loud").stdout
    run = qflow("run", "cli test: loud", "word=b", "--detach").stdout.strip()
    assert 0 == qflow("watch", run).returncode
    told = json.loads(qflow("show", run, "--json").stdout)
    assert ["EXECUTION_STATUS_COMPLETED", 2] == [told["execution"]["status"], len(told["nodes"])]
    assert "shouting b" in qflow("logs", run, "--follow").stdout
    assert run in qflow("ls", "--limit", "5").stdout


def test_what_the_workflows_of_a_run_wrote_is_printed_with_where(qflow: Qflow, flows: Path) -> None:
    run = qflow("run", f"{flows}:all_loud", 'words=["a","b"]', "--detach").stdout.strip()
    assert "" == qflow("logs", run, "--follow").stdout
    lines = qflow("logs", run, "--follow", "--nested").stdout.splitlines()
    assert ["loud[0]/shout", "loud[0]/shout_2", "loud[1]/shout", "loud[1]/shout_2"] == [
        line.split()[0] for line in lines
    ]
    assert "shouting B" in lines[-1]


async def test_what_a_node_runs_in_is_built_when_it_is_pushed(
    suite: Suite, qflow: Qflow, tmp_path: Path
) -> None:
    path = tmp_path / "needy.py"
    path.write_text(
        "# /// script\n# dependencies = ['iniconfig>=2']\n# ///\nimport qflow\n\n"
        "@qflow.node(name='cli test: needy')\ndef f() -> int:\n    import iniconfig\n    return 1\n"
    )
    done = await asyncio.to_thread(qflow, "node", "push", str(path), "--build", "--json")
    assert 0 == done.returncode, done.stderr
    [pushed] = json.loads(done.stdout)
    async with suite.channel("runner") as channel:
        stub: Any = EnvironmentServiceStub(channel)
        request = pb.PrepareEnvironmentRequest(node_id=pushed["id"])
        answer = await stub.PrepareEnvironment(request, timeout=20)
    assert [pb.ENVIRONMENT_STATE_READY] == [each.environment.state for each in answer.nodes]


def test_a_fault_in_a_source_is_shown_under_its_line(qflow: Qflow, tmp_path: Path) -> None:
    path = tmp_path / "loose.py"
    path.write_text(
        "import qflow\n\n@qflow.node(name='cli test: loose')\ndef f(x):\n    return x\n"
    )
    done = qflow("node", "push", str(path))
    assert 0 == done.returncode, done.stderr
    assert "    4 | def f(x):\n" in done.stdout, "as it stands in the file"
    assert "^ the parameter x has no annotation" in done.stdout
    path.write_text(path.read_text().replace("f(x)", "f(x: 'Nope')"))
    refused = qflow("node", "push", str(path))
    assert (3, "") == (refused.returncode, refused.stdout)
    assert [
        "    4 | def f(x: 'Nope'):",
        "      |          ^ the name Nope is not defined; import or define it, or write Any",
        "qflow: cli test: loose was not stored",
    ] == refused.stderr.splitlines()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run", "none.py"], 2, "there is no file none.py"),
        (["run", "no such workflow"], 2, "there is no workflow 'no such workflow'"),
        (["show", "00000000-0000-4000-8000-000000000000"], 3, "no such"),
        (["show", "x"], 3, "execution_id"),
        (["nothing"], 2, "No such command"),
        (["ls", "--context", "nowhere"], 4, "no context 'nowhere'"),
        (["ls", "status ="], 3, "filter"),
        (["run", "x", "--input", "@nothing-here"], 2, "nothing-here"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_a_code(
    qflow: Qflow, arguments: list[str], code: int, said: str
) -> None:
    done = qflow(*arguments)
    assert code == done.returncode
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_no_server_is_told_with_the_address(qflow: Qflow) -> None:
    nowhere = dict.fromkeys(
        ["QFLOW_REGISTRY", "QFLOW_ORCHESTRATOR", "QFLOW_RUNNER", "QFLOW_TELEMETRY"], "127.0.0.1:1"
    )
    done = qflow("whoami", **nowhere)
    assert 4 == done.returncode
    assert "no Qflow answers at 127.0.0.1:1" in done.stderr


def test_signing_in_keeps_a_context(qflow: Qflow, suite: Suite, tmp_path: Path) -> None:
    ports = suite.endpoints
    arguments = [f"--{each}={ports[each]}" for each in ("orchestrator", "runner", "telemetry")]
    done = qflow(
        "login", ports["registry"], *arguments, "--name=here", QFLOW_TOKEN=suite.owner_token
    )
    assert "here: signed in as owner@localhost" in done.stdout
    kept = tmp_path / ".config" / "qflow" / "contexts.json"
    assert 0o600 == kept.stat().st_mode & 0o777
    assert "* here" in qflow("context", "ls").stdout
    assert "owner@localhost (owner)\n" == qflow("whoami", QFLOW_HOME="").stdout
    assert 3 == qflow("login", ports["registry"], "--name=no", QFLOW_TOKEN="qft_x").returncode
    assert "no" not in qflow("context", "ls").stdout.split()


def test_a_run_is_planned_and_done_again_from_a_place(qflow: Qflow, flows: Path) -> None:
    qflow("workflow", "push", f"{flows}:loud")
    planned = qflow("plan", "cli test: loud", "word=a").stdout
    assert ["node", "shout", "shout_2"] == [line.split()[0] for line in planned.splitlines()[:3]]
    run = qflow("run", "cli test: loud", "word=c", "--detach").stdout.strip()
    assert 0 == qflow("watch", run).returncode
    again = qflow("rerun", run, "--from", "shout_2")
    assert (0, '{"result":"C"}\n') == (again.returncode, again.stdout)
    failed = json.loads(qflow("run", f"{flows}:failing", "word=x", "--json").stdout)
    assert 1 == qflow("retry", failed["id"]).returncode
    said = qflow("explain", failed["id"]).stdout
    assert "never x" in said
    assert "\n  time: 20" in said


def test_versions_are_compared(qflow: Qflow, flows: Path) -> None:
    text = flows.read_text()
    renamed = text.replace("cli test: loud", "cli test: diffed")
    flows.write_text(renamed)
    qflow("workflow", "push", f"{flows}:loud")
    flows.write_text(renamed.replace("return shout(shout(word))", "return shout(word, 2)"))
    qflow("workflow", "push", f"{flows}:loud")
    told = qflow("diff", "cli test: diffed", "1")
    assert "removed" in told.stdout, told.stderr
    assert "shout_2" in told.stdout
    same = qflow("diff", "cli test: diffed", "1", "1")
    assert ("", "nothing has changed between the two\n") == (same.stdout, same.stderr)
    missing = qflow("diff", "cli test: diffed", "1", "9")
    assert (3, True) == (missing.returncode, "has versions 1 to 2, not 9" in missing.stderr)


def test_a_schedule_is_made_looked_at_and_removed(qflow: Qflow, flows: Path) -> None:
    qflow("workflow", "push", f"{flows}:loud")
    made = qflow(
        *("schedule", "create", "cli test: loud", "word=s", "--cron", "0 6 * * *", "--paused"),
        *("--overlap", "allow", "--catch-up", "none"),
    )
    assert 0 == made.returncode, made.stderr
    schedule = made.stdout.strip()
    told = json.loads(qflow("schedule", "ls", "--json").stdout)
    [of] = [each["definition"] for each in told if each["id"] == schedule]
    assert ["OVERLAP_POLICY_ALLOW", "CATCH_UP_POLICY_NONE"] == [of["overlap"], of["catch_up"]]
    listed = qflow("schedule", "ls").stdout
    assert "0 6 * * *" in next(line for line in listed.splitlines() if schedule in line)
    moments = json.loads(qflow("schedule", "preview", schedule, "--json").stdout)
    assert [5, "T06:00:00Z"] == [len(moments), moments[0][10:]]
    assert 0 == qflow("schedule", "trigger", schedule).returncode
    [tick] = json.loads(qflow("schedule", "ticks", schedule, "--json").stdout)
    assert ("SCHEDULE_TICK_KIND_MANUAL", schedule) == (tick["kind"], tick["schedule_id"])
    assert tick["tick_time"][:16] in qflow("schedule", "ticks", schedule).stdout
    assert 0 == qflow("schedule", "rm", schedule).returncode
    assert schedule not in qflow("schedule", "ls").stdout
    assert 2 == qflow("schedule", "create", "cli test: loud").returncode


def test_runs_are_found_again_and_changed_by_what_they_were_given(
    qflow: Qflow, flows: Path
) -> None:
    """A label finds them; one that is to begin later is cancelled, one that failed runs again."""
    mark = uuid.uuid4().hex
    label = ("--label", f"mark={mark}", "--label", "env=test")
    later = qflow("run", f"{flows}:loud", "word=a", *label, "--at", "+1h", "--detach")
    timed = ("--priority", "7", "--timeout", "10m")
    failed = qflow("run", f"{flows}:failing", "word=b", *label, *timed)
    assert [0, 1] == [later.returncode, failed.returncode]
    found = json.loads(qflow("ls", f"labels.mark = {mark}", "--json").stdout)
    assert [7, None] == [each.get("priority") for each in found]
    assert [True, False] == ["deadline_time" in each for each in found]
    found_by = f"labels.mark = {mark}"
    asked = qflow("batch", "cancel", found_by)
    assert (130, True) == (asked.returncode, "Cancel 1 of 1 runs?" in asked.stderr)
    shown = qflow("batch", "cancel", found_by, "--dry-run")
    assert (0, True) == (shown.returncode, later.stdout.strip() in shown.stdout)
    pending = "EXECUTION_STATUS_PENDING"
    show = ("show", later.stdout.strip(), "--json")
    assert pending == json.loads(qflow(*show).stdout)["execution"]["status"]
    assert 0 == qflow("batch", "cancel", found_by, "--yes").returncode
    assert pending != json.loads(qflow(*show).stdout)["execution"]["status"]
    again = qflow("batch", "retry", f"{found_by} AND status = failed", "--yes", "--json")
    [item] = json.loads(again.stdout)["items"]
    assert found[0]["id"] == item["execution_id"]
    assert 1 == qflow("watch", item["new_execution_id"]).returncode
    left = f"{found_by} AND workflow_name = 'cli test: failing' AND repeated = false"
    listed = json.loads(qflow("ls", left, "--json").stdout)
    assert [item["new_execution_id"]] == [each["id"] for each in listed], "and not what it came of"
    key = ("--key", mark, "--on-reuse", "reject")
    word = ("run", f"{flows}:loud", "word=a")
    assert 0 == qflow(*word, *key).returncode
    used = qflow(*word, *key)
    assert (3, True) == (used.returncode, "an earlier run had this key: " in used.stderr)
    wrong = qflow(*word, "--on-conflict", "cancel_existing")
    assert (2, True) == (wrong.returncode, "--on-conflict is said of a --key" in wrong.stderr)


def test_files_are_put_and_got(qflow: Qflow, tmp_path: Path) -> None:
    (tmp_path / "a b.txt").write_text("hé")
    file = qflow("files", "put", str(tmp_path / "a b.txt")).stdout.strip()
    assert 0 == qflow("files", "get", file, str(tmp_path / "back")).returncode
    assert "hé" == (tmp_path / "back").read_text()
    assert "a b.txt" in qflow("files", "ls").stdout


def test_a_file_replaces_nothing_under_the_name_that_another_chose(
    qflow: Qflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.txt").write_text("theirs")
    file = qflow("files", "put", "mine.txt").stdout.strip()
    Path("mine.txt").write_text("mine")
    refused = qflow("files", "get", file)
    assert 2 == refused.returncode
    assert "mine.txt is there already" in refused.stderr
    assert "mine" == Path("mine.txt").read_text()
    told = json.loads(qflow("files", "get", file, "--force", "--json").stdout)
    assert ("mine.txt", file) == (told["path"], told["file"]["id"])
    assert "theirs" == Path("mine.txt").read_text()


def test_whoever_steers_a_run_reads_how_it_stands_as_json(qflow: Qflow, flows: Path) -> None:
    run = qflow("run", f"{flows}:lingering", "seconds=30", "--detach").stdout.strip()
    told = [json.loads(qflow(word, run, "--json").stdout) for word in ("pause", "resume", "cancel")]
    assert [run] * 3 == [each["id"] for each in told]
    ended = json.loads(qflow("watch", run, "--json").stdout)
    assert "EXECUTION_STATUS_CANCELLED" == ended["status"]
    drawn = json.loads(qflow("graph", f"{flows}:loud", "--json").stdout)
    assert {
        "nodes": ["shout", "shout_2"],
        "edges": [{"source_node": "shout", "target_node": "shout_2"}],
    } == drawn


def test_a_quota_is_shown_and_set(qflow: Qflow, flows: Path) -> None:
    mine = json.loads(qflow("quota", "--json").stdout)
    tenant = mine["tenant_id"]
    done = qflow("quota", "set", tenant, "stored_files=2k", "per_day.moved_bytes=1.5GiB")
    try:
        assert 0 == done.returncode, done.stderr
        told = json.loads(qflow("quota", "set", tenant, "environments=9", "--json").stdout)
        assert {"stored_files": "2000", "environments": "9"} == {
            name: each for name, each in told["quota"].items() if isinstance(each, str)
        }
        qflow("run", f"{flows}:loud", "word=a")
        lines = qflow("quota", "show").stdout.splitlines()
        rows = {line.split()[0]: line.split()[1:] for line in lines}
        assert "1.5 GiB" in " ".join(rows["per_day.moved_bytes"])
        assert "2" == rows["per_day.nodes"][0]
        assert ["any"] == rows["per_day.nodes"][1:]
        assert "2,000" in rows["stored_files"]
        over = qflow("run", f"{flows}:loud", "word=a", "--budget", "nodes=1")
        assert (1, True) == (over.returncode, "budget of 1 attempts" in over.stderr)
    finally:
        lifted = ("stored_files=0", "per_day.moved_bytes=0", "environments=0")
        assert 0 == qflow("quota", "set", tenant, *lifted).returncode


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("quota", "set", str(uuid.uuid4()), "nodes=1"), 2, "a quota has no 'nodes'"),
        (("quota", "set", str(uuid.uuid4()), "environments"), 2, "an amount is NAME=NUMBER"),
        (("quota", "set", str(uuid.uuid4()), "environments=x"), 2, "an amount is NAME=NUMBER"),
        (("quota", "show", str(uuid.uuid4())), 3, "there is no such tenant"),
        (("run", "nothing", "--budget", "bytes"), 2, "an amount is NAME=NUMBER"),
    ],
)
def test_a_quota_that_is_none_is_told_with_what_to_do(
    arguments: tuple[str, ...], code: int, told: str, qflow: Qflow
) -> None:
    refused = qflow(*arguments)
    assert (code, True) == (refused.returncode, told in refused.stderr), refused.stderr


def test_the_doctor_is_asked_for_json(qflow: Qflow) -> None:
    told = json.loads(qflow("doctor", "--json").stdout)
    assert len(told["findings"]) > 20
    assert told["healthy"] is all(
        "INVARIANT_VERDICT_HOLDS" == each["verdict"] for each in told["findings"]
    )


def test_backups_that_are_not_kept_are_told_as_such(qflow: Qflow) -> None:
    assert "No backups are kept: set QFLOW_BACKUP_FOLDER" in qflow("backup", "status").stdout
    refused = qflow("backup", "take")
    assert 3 == refused.returncode
    assert "QFLOW_BACKUP_FOLDER" in refused.stderr


def test_ctrl_c_asks_once_and_the_run_goes_on(
    env: dict[str, str], qflow: Qflow, flows: Path
) -> None:
    # A shell begins what it runs in the background deaf to Ctrl-C, and so everything below it.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "qflow"]
    command += ["run", f"{flows}:lingering", "seconds=3", "--watch"]
    controller, terminal = pty.openpty()
    running = subprocess.Popen(
        command,
        env={**env, "TERM": "xterm"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    said = _read_until(controller, b"running")
    running.send_signal(signal.SIGINT)
    said += _read_until(controller, b"[y/N]")
    os.write(controller, b"\n")
    assert 130 == running.wait(20)
    os.close(controller)
    run = said.decode(errors="replace").rpartition("qflow watch ")[2].split()[0]
    assert 0 == qflow("watch", run).returncode


def _read_until(descriptor: int, wanted: bytes) -> bytes:
    said = b""
    ends_at = time.monotonic() + 60
    while wanted not in said:
        assert time.monotonic() < ends_at, said
        if select.select([descriptor], [], [], 1)[0]:
            try:
                said += os.read(descriptor, 65536)
            except OSError:  # whoever wrote there has ended
                pytest.fail(f"it ended without saying {wanted!r}: {said.decode(errors='replace')}")
    return said
