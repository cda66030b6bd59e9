"""The command `qflow`: limits, triggers, events, and runs that are made of others."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from services.standalone.process import wait_until
from tests.acceptance.conftest import Qflow
from tests.support.suite import Suite

FLOWS = """
from __future__ import annotations

from datetime import date

import qflow


@qflow.node(name="cli services: shout")
def shout(word: str) -> str:
    return word.upper()


@qflow.node(name="cli services: join")
def join(left: str, right: str) -> str:
    return left + right


@qflow.node(name="cli services: odd")
def odd(number: int) -> int:
    if number % 2 == 0:
        raise ValueError(number)
    return number


@qflow.workflow(name="cli services: loud")
def loud(word: str) -> str:
    return shout(word)


@qflow.workflow(name="cli services: asked")
def asked() -> str:
    return shout(qflow.signal("word", str))


@qflow.workflow(name="cli services: around")
def around() -> str:
    return shout(asked())


@qflow.workflow(name="cli services: two")
def two(left: str, right: str) -> str:
    return join(shout(left), shout(right))


@qflow.node(name="cli services: tell")
def tell(day: date) -> str:
    return f"{day:%d.%m.}"


@qflow.workflow(name="cli services: dated")
def dated(day: date) -> str:
    return tell(day)


@qflow.workflow(name="cli services: odds")
def odds(numbers: list[int]) -> list[int]:
    return odd.each(max_failed=1).map(numbers)
"""
LOUD = "cli services: loud"


@pytest.fixture
def flows(tmp_path: Path) -> Path:
    path = tmp_path / "flows.py"
    path.write_text(FLOWS, "utf-8")
    return path


def test_a_limit_is_made_changed_and_removed(qflow: Qflow, flows: Path) -> None:
    name = f"limit_{uuid.uuid4().hex}"
    qflow("workflow", "push", f"{flows}:loud")
    made = qflow("limit", "create", name, "--workflow", LOUD, "--max-running", "3", "--json")
    told = json.loads(made.stdout)
    assert (3, "LIMIT_TARGET_WORKFLOW") == (told["max_running"], told["target"])
    rate = ("--max-starts", "60", "--period", "1m", "--key", "input.word")
    assert 0 == qflow("limit", "set", name, *rate).returncode
    told = json.loads(qflow("limit", "set", name, "--max-running", "4", "--json").stdout)
    assert (4, 60, "60s") == (told["max_running"], told["max_starts"], told["period"])
    line = next(row for row in qflow("limit", "ls").stdout.splitlines() if name in row)
    assert all(
        each in line for each in (f"workflow {LOUD}", " 4 ", "60 in 1m", "for each input.word")
    )
    lifted = json.loads(qflow("limit", "set", name, "--max-starts", "0", "--json").stdout)
    assert (4, False) == (lifted["max_running"], "period" in lifted)
    assert 0 == qflow("limit", "rm", name).returncode
    assert name not in qflow("limit", "ls").stdout


def test_a_trigger_is_fired_paused_and_given_another_secret(
    qflow: Qflow, flows: Path, suite: Suite
) -> None:
    qflow("workflow", "push", f"{flows}:loud")
    made = qflow("trigger", "create", LOUD, "--payload", "word", "--filter", 'payload != "no"')
    trigger, secret = made.stdout.split()
    fire = ("trigger", "fire", trigger)
    assert 3 == qflow(*fire, '"a"', "--secret", "x" * len(secret)).returncode
    run = qflow(*fire, '"a"', QFLOW_TRIGGER_SECRET=secret).stdout.strip()
    assert (0, '{"result":"A"}\n') == ((done := qflow("watch", run)).returncode, done.stdout)
    assert "filtered" in qflow(*fire, '"no"', "--secret", secret).stdout
    assert 0 == qflow("trigger", "pause", trigger).returncode
    line = next(row for row in qflow("trigger", "ls").stdout.splitlines() if trigger in row)
    assert "paused" in line
    assert 3 == qflow(*fire, '"a"', "--secret", secret).returncode
    assert 0 == qflow("trigger", "resume", trigger).returncode
    newer = qflow("trigger", "secret", trigger).stdout.strip()
    assert [3, 0] == [qflow(*fire, '"b"', "--secret", each).returncode for each in (secret, newer)]
    [told] = [
        each
        for each in json.loads(qflow("trigger", "ls", "--json").stdout)
        if each["id"] == trigger
    ]
    assert ("2", "1") == (told["fired_count"], told["filtered_count"])
    with suite.sql() as db:
        shown = "SELECT count(*) FROM triggers AS t WHERE t::text LIKE %s"
        assert (0,) == db.execute(shown, (f"%{newer}%",)).fetchone()
    assert 0 == qflow("trigger", "rm", trigger).returncode
    assert trigger not in qflow("trigger", "ls").stdout


def test_a_trigger_gives_what_is_sent_to_an_input_that_there_is(qflow: Qflow, flows: Path) -> None:
    qflow("workflow", "push", f"{flows}:loud")
    wrong = qflow("trigger", "create", LOUD, "--payload", "words")
    assert (2, True) == (wrong.returncode, "has no input 'words' (there: word)" in wrong.stderr)


def test_an_address_is_subscribed_tested_and_removed(qflow: Qflow, flows: Path) -> None:
    qflow("workflow", "push", f"{flows}:loud")
    address = f"https://receiver.invalid/{uuid.uuid4().hex}"
    on = ("--on", "failed", "--on", "waiting")
    made = qflow("events", "create", address, *on, "--workflow", LOUD)
    subscription, secret = made.stdout.split()
    assert secret.startswith("whsec_")
    line = next(row for row in qflow("events", "ls").stdout.splitlines() if subscription in row)
    assert all(each in line for each in (address, "failed, waiting", " on"))
    sent = qflow("events", "test", subscription).stdout.strip()
    [told] = json.loads(qflow("events", "deliveries", subscription, "--json").stdout)
    assert (sent, "EVENT_TYPE_TEST") == (told["id"], told["event_type"])
    assert sent in qflow("events", "deliveries", subscription).stdout
    assert 0 == qflow("events", "resend", sent).returncode
    assert 0 == qflow("events", "pause", subscription, "--reason", "on leave").returncode
    assert "paused: on leave" in qflow("events", "ls").stdout
    assert 0 == qflow("events", "resume", subscription).returncode
    assert "paused: on leave" not in qflow("events", "ls").stdout
    assert secret != qflow("events", "secret", subscription).stdout.strip()
    assert 0 == qflow("events", "rm", subscription).returncode
    assert subscription not in qflow("events", "ls").stdout


def test_a_schedule_is_changed_and_what_is_not_named_stays(qflow: Qflow, flows: Path) -> None:
    qflow("workflow", "push", f"{flows}:two")
    daily = ("--cron", "0 6 * * *", "--zone", "Europe/Berlin", "--catch-up", "all", "--paused")
    made = qflow("schedule", "create", "cli services: two", "left=a", "right=b", *daily)
    schedule = made.stdout.strip()

    def changed(*arguments: str) -> dict[str, Any]:
        told = qflow("schedule", "set", schedule, *arguments, "--json")
        assert 0 == told.returncode, told.stderr
        return dict[str, Any](json.loads(told.stdout)["definition"])

    of = changed("right=c", "--cron", "0 7 * * *", "--name", "later", "--overlap", "allow")
    assert {"left": "a", "right": "c"} == json.loads(of["input_json"])
    assert ("OVERLAP_POLICY_ALLOW", "CATCH_UP_POLICY_ALL") == (of["overlap"], of["catch_up"])
    cron = of["timing"]["cron"]
    assert ("0 7 * * *", "Europe/Berlin") == (cron["expression"], cron["time_zone"])
    of = changed("--zone", "Asia/Tokyo", "--catch-up", "none", "--alias", "")
    assert ("Asia/Tokyo", "later") == (of["timing"]["cron"]["time_zone"], of["name"])
    assert ("0 7 * * *", "CATCH_UP_POLICY_NONE") == (
        of["timing"]["cron"]["expression"],
        of["catch_up"],
    )
    shown = qflow("schedule", "set", schedule, "--every", "90m").stdout
    assert all(each in shown for each in (schedule, "later", "every 90m", "paused"))
    assert 2 == qflow("schedule", "set", schedule, "--zone", "UTC").returncode


def test_a_backfill_is_listed_and_stopped(qflow: Qflow, flows: Path) -> None:
    qflow("workflow", "push", f"{flows}:loud")
    made = qflow("schedule", "create", LOUD, "word=a", "--every", "1h", "--paused")
    schedule = made.stdout.strip()
    begun = qflow("schedule", "backfill", schedule, "2026-01-01T01:00+01:00", "2026-02-01")
    backfill = begun.stdout.strip()
    stopped = json.loads(qflow("schedule", "cancel-backfill", backfill, "--json").stdout)
    assert "SCHEDULE_BACKFILL_STATE_CANCELLED" == stopped["backfill"]["state"]
    [told] = json.loads(qflow("schedule", "backfills", schedule, "--json").stdout)
    assert ("2026-01-01T00:00:00Z", 744) == (told["start_time"], told["total_count"])
    [line] = qflow("schedule", "backfills", schedule).stdout.splitlines()[1:]
    assert all(each in line for each in (backfill, "2026-02-01T00:00:00Z", "cancelled", "/744"))
    refused = qflow("schedule", "backfill", schedule, "2026-02-30", "2026-03-01")
    assert (2, True) == (refused.returncode, "not '2026-02-30'" in refused.stderr)
    assert 0 == qflow("schedule", "rm", schedule).returncode


def test_a_backfill_gives_each_run_its_day(qflow: Qflow, flows: Path) -> None:
    qflow("workflow", "push", f"{flows}:dated")
    daily = ("--cron", "0 6 * * *", "--paused", "--time-input")
    unknown = qflow("schedule", "create", "cli services: dated", *daily, "dy")
    assert (2, True) == (unknown.returncode, "no input 'dy' (there: day)" in unknown.stderr)
    made = qflow("schedule", "create", "cli services: dated", *daily, "day")
    schedule = made.stdout.strip()
    qflow("schedule", "backfill", schedule, "2026-01-30", "2026-02-02")
    listed = ("schedule", "backfills", schedule)
    assert wait_until(lambda: "completed" in qflow(*listed).stdout, timeout_s=30)
    told = json.loads(qflow("schedule", "ticks", schedule, "--json").stdout)
    outputs = [qflow("watch", each["execution_id"]).stdout.strip() for each in told]
    assert ['{"result":"01.02."}', '{"result":"31.01."}', '{"result":"30.01."}'] == outputs
    fixed = qflow("schedule", "set", schedule, "day=2026-01-31", "--time-input", "", "--json")
    assert '{"day":"2026-01-31"}' == json.loads(fixed.stdout)["definition"]["input_json"]
    timed = qflow("schedule", "set", schedule, "--time-input", "day", "--json")
    of = json.loads(timed.stdout)["definition"]
    assert ("{}", "day") == (of["input_json"], of["timing"]["time_input"])


def test_a_fork_takes_other_inputs_and_keeps_what_is_the_same(qflow: Qflow, flows: Path) -> None:
    qflow("workflow", "push", f"{flows}:two")
    first = qflow("run", "cli services: two", "left=a", "right=b", "--json")
    run = json.loads(first.stdout)["id"]
    forked = json.loads(qflow("fork", run, "right=c", "--json").stdout)
    assert ("EXECUTION_STATUS_COMPLETED", run) == (
        forked["status"],
        forked["parent_execution_id"],
    )
    assert "AC" == json.loads(forked["output_json"])["result"]
    assert {"left": "a", "right": "c"} == json.loads(forked["input_json"])
    assert 3 == qflow("fork", run).returncode  # all of it is there
    same = json.loads(qflow("fork", run, "--from", "join", "--json").stdout)
    assert "AB" == json.loads(same["output_json"])["result"]


def test_a_node_is_held_up_let_go_on_and_ended_by_hand(qflow: Qflow, flows: Path) -> None:
    started = json.loads(qflow("run", f"{flows}:asked", "-d", "--json").stdout)
    run = started["id"]
    assert 0 == qflow("pause", run, "--node", "shout").returncode
    assert 0 == qflow("signal", run, "word", "a").returncode
    held = json.loads(qflow("show", run, "--json").stdout)["nodes"]
    assert "NODE_EXECUTION_STATUS_PAUSED" in {
        each["status"] for each in held if each["node_id"] == "shout"
    }
    assert 0 == qflow("resume", run, "--node", "shout").returncode
    assert '{"result":"A"}\n' == qflow("watch", run).stdout
    over = qflow("skip", run, "shout")
    assert (3, True) == (over.returncode, "already completed" in over.stderr)
    other = json.loads(qflow("run", f"{flows}:asked", "-d", "--json").stdout)["id"]
    wrong = qflow("skip", other, "shout", "result=3")
    assert (3, True) == (wrong.returncode, "str was expected" in wrong.stderr)
    assert 0 == qflow("skip", other, "shout", "result=B").returncode
    assert 0 == qflow("signal", other, "word", "a").returncode
    assert '{"result":"B"}\n' == qflow("watch", other).stdout


def test_what_a_run_waits_for_is_listed(qflow: Qflow, flows: Path) -> None:
    run = json.loads(qflow("run", f"{flows}:asked", "-d", "--json").stdout)["id"]
    titles, line = qflow("waits", run).stdout.splitlines()
    assert ["node", "kind", "name", "takes", "until", "subject"] == titles.split()
    assert ["word", "signal", "word", "str"] == line.split()
    [told] = json.loads(qflow("waits", run, "--json").stdout)
    assert ("word", "WAIT_KIND_SIGNAL") == (told["node_id"], told["kind"])
    assert 0 == qflow("cancel", run).returncode
    over = qflow("waits", run, "--json")
    assert (0, []) == (over.returncode, json.loads(over.stdout))


def test_a_node_is_tried_without_a_workflow(qflow: Qflow, flows: Path) -> None:
    qflow("node", "push", f"{flows}:shout")
    shout = "cli services: shout"
    tried = qflow("node", "run", shout, "word=a")
    assert (0, '{"result":"A"}\n') == (tried.returncode, tried.stdout), tried.stderr
    text = json.loads(qflow("node", "run", shout, "word=1", "--json").stdout)
    assert "1" == json.loads(text["output_json"])["result"]
    wrong = qflow("node", "run", shout, "words=a")
    assert (3, True) == (wrong.returncode, "it takes word" in wrong.stderr)
    missing = qflow("node", "run", shout, "word=a", "--version", "9999")
    assert (3, True) == (missing.returncode, "not 9999" in missing.stderr)
    run = qflow("node", "run", shout, "word=b", "-d").stdout.strip()
    assert '{"result":"B"}\n' == qflow("watch", run).stdout


def test_an_alias_is_set_moved_back_and_removed(qflow: Qflow, tmp_path: Path) -> None:
    name = f"cli services: aliased {uuid.uuid4().hex}"
    path = tmp_path / "aliased.py"
    text = FLOWS.replace("cli services: two", name)
    for source in (text, text.replace("join(shout(left), shout(right))", "shout(left)")):
        path.write_text(source, "utf-8")
        assert 0 == qflow("workflow", "push", f"{path}:two").returncode
    for version in "12":
        assert 0 == qflow("alias", "set", name, "stable", version).returncode
    assert ["stable", "2"] == qflow("alias", "ls", name).stdout.splitlines()[1].split()[:2]
    given = ("left=a", "right=b")
    assert '{"result":"A"}\n' == qflow("run", name, *given, "--alias", "stable").stdout
    assert "stable" in qflow("alias", "rollback", name, "stable").stdout
    assert '{"result":"AB"}\n' == qflow("run", name, *given, "--alias", "stable").stdout
    assert 0 == qflow("alias", "rm", name, "stable").returncode
    assert [] == json.loads(qflow("alias", "ls", name, "--json").stdout)
    gone = qflow("alias", "rollback", name, "stable")
    assert (3, True) == (gone.returncode, "alias" in gone.stderr)


def test_a_plan_names_the_workflows_within(qflow: Qflow, flows: Path) -> None:
    qflow("workflow", "push", f"{flows}:asked")
    qflow("workflow", "push", f"{flows}:around")
    lines = qflow("plan", "cli services: around").stdout.splitlines()
    [at] = [at for at, line in enumerate(lines) if line.startswith("within, ")]
    assert "within, cli services: asked version 1:" == lines[at]
    assert ["asked", "shout"] == sorted(line.split()[0] for line in lines[1 : at - 1])
    assert ["word", "shout"] == [line.split()[0] for line in lines[at + 2 : at + 4]]


def test_what_a_map_put_aside_is_run_again(qflow: Qflow, flows: Path) -> None:
    qflow("workflow", "push", f"{flows}:odds")
    first = qflow("run", "cli services: odds", "numbers=[1,2,3]", "--json")
    assert 0 == first.returncode, first.stderr
    run = json.loads(first.stdout)["id"]
    assert "odd[1] put aside: ValueError: 2\n" in qflow("show", run).stdout
    assert "nothing is in its way\n" == qflow("explain", run).stderr
    again = json.loads(qflow("retry", run, "--quarantined", "--json").stdout)
    assert run == again["parent_execution_id"]
    assert [1, None, 3] == json.loads(again["output_json"])["result"]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("limit", "create", "x", "--workflow", "a", "--node", "b"), 2, "or of neither"),
        (("limit", "create", "x", "--node", "nowhere", "--max-running", "1"), 2, "is no node"),
        (("limit", "create", "x", "--max-running", "9" * 12), 2, "is not in the range"),
        (("limit", "create", "x", "--max-starts", "1"), 3, "max_starts and period go together"),
        (("limit", "set", "nowhere", "--max-running", "1"), 3, "no such limit"),
        (("events", "create", "https://x.example", "--on", "never"), 2, "--on is one of started"),
        (("trigger", "fire", "x"), 2, "--secret, or QFLOW_TRIGGER_SECRET"),
        (("trigger", "create", "nowhere"), 2, "there is no workflow 'nowhere'"),
        (("fork", "00000000-0000-4000-8000-000000000000"), 3, "`qflow ls` shows those you may"),
    ],
)
def test_what_is_none_is_told_with_what_to_do(
    arguments: tuple[str, ...], code: int, told: str, qflow: Qflow
) -> None:
    refused = qflow(*arguments)
    assert (code, True) == (refused.returncode, told in refused.stderr), refused.stderr
