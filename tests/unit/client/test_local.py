"""Workflows written as functions: what is built of them, and what they do without a server."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, TypedDict

import pytest
import qflow
from qflow import values
from qflow.authoring.annotations import type_of

from tests.support.retry_cases import CASES, KINDS, Case


class Table(TypedDict):
    rain: list[float]
    days: int


@dataclass
class Report:
    share: float
    when: dt.date


@qflow.node
def read(text: str) -> Table:
    rows = [float(each) for each in text.split(",")]
    return {"rain": rows, "days": len(rows)}


@qflow.node
def count(rain: list[float], threshold: float = 1.0) -> int:
    return sum(1 for each in rain if each >= threshold)


@qflow.node
def report(part: float, whole: float) -> Report:
    return Report(part / whole, dt.date(2026, 1, 2))


@qflow.node
async def square(n: float) -> float:
    return n * n


@qflow.node
def total(ns: list[float]) -> float:
    return sum(ns)


@qflow.node
def fail(n: int) -> int:
    raise ValueError(f"no {n}")


@qflow.node
def message(error: dict[str, str]) -> str:
    return f"{error['node_id']}: {error['message']}"


@qflow.node
def either(a: str = "", b: str = "") -> str:
    return a or b


@qflow.node
def shout(n: int) -> str:
    return f"{n}!"


@qflow.node
def half(n: int) -> int:
    return n // 2


@qflow.node
def pay(amount: Decimal, ok: bool) -> Decimal:  # noqa: FBT001  # an input is no flag of a call
    return amount if ok else Decimal(0)


@qflow.workflow
def weather(text: str) -> Report:
    table = read(text)
    return report(part=count(table["rain"]), whole=table["days"])


@qflow.workflow
def squares(ns: list[float]) -> float:
    return total(square.map(ns))


@qflow.workflow
def speak(n: int) -> str:
    size = qflow.choice({"large": "n > 10"}, default="small", n=n)
    with size.branch("large"):
        loud = shout(n)
    with size.branch("small"):
        halved = shout(half(n))
    return either.options(join="any")(loud, halved)


@qflow.workflow
def saved(n: int) -> str:
    failed = fail(n)
    with qflow.on_failure(failed) as error:
        return message(error)


def test_inputs_outputs_and_conversions_are_as_in_a_run() -> None:
    assert Report(2 / 3, dt.date(2026, 1, 2)) == weather.run_local("1,0,3.5")


def test_the_function_of_a_node_stays_one() -> None:
    assert 2 == count([1.0, 2.0])
    assert "!" in shout.function(3)


def test_a_map_runs_each_element() -> None:
    assert 14.0 == squares.run_local([1, 2, 3])


@pytest.mark.parametrize(("n", "said"), [(30, "30!"), (4, "2!")])
def test_a_choice_takes_one_branch(n: int, said: str) -> None:
    assert said == speak.run_local(n)


def test_a_failure_branch_gets_what_it_failed_with() -> None:
    assert "fail: ValueError: no 3" == saved.run_local(3)


@pytest.mark.parametrize(("tried", "said"), [(fail, "1!"), (half, None)])
def test_what_stands_behind_a_failure_runs_where_it_comes_whatever_else_feeds_it(
    tried: Callable[[int], int], said: str | None
) -> None:
    @qflow.workflow
    def flow(n: int) -> str | None:
        halved = half(n)
        with qflow.on_failure(tried(n)):
            return shout(halved)

    assert said == flow.run_local(3)


def test_one_failure_of_several_is_enough() -> None:
    @qflow.workflow
    def flow(n: int) -> str:
        with qflow.on_failure(fail(n)), qflow.on_failure(half(n)):
            return shout(n)

    assert "3!" == flow.run_local(3)


def test_a_source_counts_once_however_many_edges_lead_from_it() -> None:
    @qflow.workflow
    def flow(n: int) -> str | None:
        halved = half(n)
        loud = shout(n)
        with qflow.after(loud):
            lost = fail.options(continue_on_failure=True)(n)
        with qflow.after(halved), qflow.after(halved):
            return shout.options(join=2)(lost)

    assert flow.run_local(3) is None


def test_what_has_no_value_is_null_to_a_condition() -> None:
    @qflow.workflow
    def flow(n: int) -> str:
        loud = shout.options(condition="n > 5")(n)
        return either.options(join="all_done", condition="a == null")(loud, "quiet")

    assert "quiet" == flow.run_local(3)


def test_a_condition_that_cannot_be_worked_out_fails_as_in_a_run() -> None:
    @qflow.workflow
    def flow(n: int) -> str:
        return shout.options(condition="n / 0 == 1")(n)

    with pytest.raises(qflow.ExecutionFailedError, match=r"^shout: condition: ") as failed:
        flow.run_local(3)
    assert "condition_error" == failed.value.error_type


def test_a_loop_whose_turns_are_used_up_fails_as_in_a_run() -> None:
    @qflow.workflow
    def flow(n: int) -> int:
        endless = half.repeat(while_="true", max_turns=2, carry={"n": "result"}, fail_at_max=True)
        return endless(n)

    with pytest.raises(qflow.ExecutionFailedError, match="still holds after 2 turns") as failed:
        flow.run_local(3)
    assert "loop_exhausted" == failed.value.error_type


def test_an_input_that_gets_no_value_and_needs_one_is_named() -> None:
    @qflow.workflow
    def flow(n: int) -> str:
        lost = fail.options(continue_on_failure=True)(n)
        return shout.options(join="all_done")(lost)

    with pytest.raises(qflow.ExecutionFailedError, match=r"shout\.n has no value"):
        flow.run_local(3)


def test_a_failure_that_nobody_handles_ends_the_run() -> None:
    @qflow.workflow
    def flow(n: int) -> int:
        return half(fail(n))

    with pytest.raises(qflow.ExecutionFailedError, match="fail: ValueError: no 4") as failed:
        flow.run_local(4)
    assert ("user_error", "fail") == (failed.value.error_type, failed.value.node_id)


def test_a_retry_tries_again() -> None:
    tries = []

    def flaky(n: int) -> int:
        tries.append(n)
        if len(tries) < 3:
            raise OSError("not yet")
        return n

    node = qflow.node(flaky).options(retry=qflow.Retry(max_retries=2, on=("OSError",)))

    @qflow.workflow
    def flow(n: int) -> int:
        return node(n)

    assert 7 == flow.run_local(7)
    assert [7, 7, 7] == tries


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_retry_names_errors_as_on_a_server(case: Case) -> None:
    tries = []

    def flaky(n: int) -> int:
        tries.append(n)
        if len(tries) < 2:
            raise case.raised
        return n

    retry = qflow.Retry(max_retries=1, on=case.on, never_on=case.never_on)
    node = qflow.node(flaky).options(retry=retry)

    @qflow.workflow
    def flow(n: int) -> int:
        return node(n)

    if case.again:
        assert 7 == flow.run_local(7)
    else:
        with pytest.raises(qflow.ExecutionFailedError) as failed:
            flow.run_local(7)
        assert KINDS.get(case.raised, "user_error") == failed.value.error_type


def test_signals_and_approvals_are_told_and_waits_take_no_time() -> None:
    @qflow.workflow
    def flow() -> Decimal:
        pause = qflow.sleep(dt.timedelta(days=3))
        with qflow.after(pause):
            amount = qflow.signal("amount", Decimal)
        answer = qflow.approval("boss")
        return pay(amount, answer["approved"])

    world = qflow.Local(signals={"amount": Decimal("9.90")}, approvals={"boss": True})
    before = world.now
    assert Decimal("9.90") == world.run(flow)
    assert dt.timedelta(days=3) == world.now - before
    with pytest.raises(qflow.ExecutionFailedError, match="no signal amount is given"):
        flow.run_local()


def test_a_loop_carries_its_outputs() -> None:
    @qflow.workflow
    def flow(n: int) -> int:
        return half.repeat(while_="result > 1", max_turns=10, carry={"n": "result"})(n)

    assert 1 == flow.run_local(100)


def test_a_sub_workflow_is_a_place() -> None:
    @qflow.workflow
    def flow(n: int) -> str:
        return speak(half(n))

    assert "20!" == flow.run_local(40)
    assert ["half", "speak"] == [place.id for place in flow.graph.places]


@qflow.workflow
def eighth(n: int, times: int = 3) -> int:
    return half(half(half(n)))


@qflow.workflow
def picky(n: int) -> int:
    return either_fails(half(n))


@qflow.node
def either_fails(n: int) -> int:
    if n > 9:
        raise ValueError(f"no {n}")
    return n


def test_a_sub_workflow_runs_for_each_and_again_and_undoes_as_a_node_does() -> None:
    @qflow.workflow
    def flow(ns: list[int]) -> dict[str, Any]:
        told = eighth.options(id="told").map([80, 160], times=1)
        some = picky.each(max_failed=1, max_in_flight=2).map(ns)
        until = eighth.repeat(while_="result > 1", max_turns=9, carry={"n": "result"})(5000)
        return {"told": told, "some": some, "until": until}

    assert {"told": [10, 20], "some": [1, None, 3], "until": 1} == flow.run_local([2, 20, 6])
    with pytest.raises(qflow.ExecutionFailedError, match="no 10"):
        flow.run_local([20, 20])


@qflow.node
def note(n: int, path: str) -> None:
    with Path(path).open("a", encoding="utf-8") as out:
        out.write(f"{n}\n")


@qflow.workflow
def undo(n: int, path: str) -> None:
    note(n, path)


def test_a_sub_workflow_undoes(tmp_path: Path) -> None:
    @qflow.workflow
    def flow(path: str) -> int:
        done = half(8)
        undo.undoes(done)(done, path)
        return fail(done)

    with pytest.raises(qflow.ExecutionFailedError):
        flow.run_local(str(tmp_path / "undone"))
    assert "4\n" == (tmp_path / "undone").read_text("utf-8")


def test_what_breaks_in_the_function_of_a_workflow_is_told_with_its_line() -> None:
    @qflow.workflow
    def flow(n: int) -> int:
        return half.maps(n)  # type: ignore[attr-defined, no-any-return]

    with pytest.raises(
        qflow.AuthoringError,
        match=r"flow cannot be read: AttributeError: .*maps.* \(line \d+ of test_local.py\)",
    ):
        flow.run_local(3)


@qflow.node
def month(day: dt.date) -> str:
    return day.strftime("%B")


@pytest.mark.parametrize("literal", [True, False])
def test_elements_of_sub_workflows_are_what_their_input_is(literal: bool) -> None:  # noqa: FBT001
    given = [dt.date(2026, 1, 31), dt.date(2026, 2, 1)]

    @qflow.workflow
    def told(day: dt.date) -> str:
        return month(day)

    @qflow.workflow
    def flow(days: list[dt.date]) -> list[str]:
        return told.map(given if literal else days)

    assert ["January", "February"] == flow.run_local(given)


def test_a_map_says_which_parameter_takes_the_elements() -> None:
    @qflow.workflow
    def flow(ns: list[int]) -> list[int]:
        return count.map(ns, rain=[1.0])  # type: ignore[call-arg]

    with pytest.raises(qflow.AuthoringError, match=r"its first parameter, rain, takes the element"):
        _ = flow.graph


class Whole(TypedDict):
    table: Table


@qflow.node
def read_whole(text: str) -> Whole:
    rows = [float(each) for each in text.split(",")]
    return {"table": {"rain": rows, "days": len(rows)}}


@qflow.node
def days_of(table: Table) -> int:
    return table["days"]


def test_a_record_is_handed_on_field_by_field_and_as_a_field_of_another() -> None:
    @qflow.workflow
    def flow(text: str) -> float:
        return days_of(read(text))

    with pytest.raises(
        qflow.AuthoringError, match=r"rain, days, each by itself: .* such as \.rain"
    ):
        _ = flow.graph

    @qflow.workflow
    def whole(text: str) -> int:
        return days_of(read_whole(text)["table"])

    assert 2 == whole.run_local("1,2")


def test_compensation_undoes_what_completed_latest_first() -> None:
    undone: list[str] = []

    def book(name: str) -> str:
        return name

    def cancel(name: str) -> str:
        undone.append(name)
        return name

    booking, cancelling = qflow.node(book), qflow.node(cancel)

    @qflow.workflow
    def flow() -> int:
        first = booking.options(id="first")("hotel")
        second = booking.options(id="second")("flight")
        cancelling.undoes(first)(first)
        cancelling.undoes(second)(second)
        with qflow.after(first, second):
            return fail(1)

    with pytest.raises(qflow.ExecutionFailedError):
        flow.run_local()
    assert ["flight", "hotel"] == undone

    @qflow.workflow
    def other_way_round() -> int:
        first = booking.options(id="first")("hotel")
        second = booking.options(id="second")("flight")
        cancelling.undoes(second)(second)
        cancelling.undoes(first)(first)
        with qflow.after(first, second):
            return fail(1)

    undone.clear()
    with pytest.raises(qflow.ExecutionFailedError):
        other_way_round.run_local()
    assert ["flight", "hotel"] == undone


def test_a_refuted_edge_is_told_before_anything_runs() -> None:
    @qflow.workflow
    def flow(text: str) -> int:
        return half(text)  # type: ignore[arg-type]  # the editor says so too

    with pytest.raises(qflow.EdgeRefusedError, match=r"input text > half\.n does not fit"):
        flow.run_local("a")


def test_a_wrong_value_is_told_with_its_place() -> None:
    with pytest.raises(qflow.ValueTypeError, match=r"input text: expected str, got int"):
        weather.run_local(3)  # type: ignore[arg-type]


def used_as(what: str, value: Any) -> Any:
    match what:
        case "tested":
            return bool(value)
        case "iterated over":
            return list(value)
        case "reckoned with":
            return value + 1
        case _:
            return value == 3


@pytest.mark.parametrize("what", ["tested", "iterated over", "reckoned with", "compared"])
def test_a_value_that_is_not_known_yet_says_so(what: str) -> None:
    @qflow.workflow
    def flow(n: int) -> int:
        used_as(what, half(n))
        return half(n)

    with pytest.raises(qflow.AuthoringError, match=f"the value of half> cannot be {what} while"):
        _ = flow.graph


def test_two_places_of_one_node_have_two_names() -> None:
    @qflow.workflow
    def flow(n: int) -> int:
        return half(half(half.options(id="last")(n)))

    assert ["last", "half", "half_2"] == [place.id for place in flow.graph.places]


@qflow.node
def merge(a: int = 0, b: int = 0) -> str:
    return f"{a},{b}"


def test_order_edges_of_a_join_count_as_its_values_do() -> None:
    @qflow.workflow
    def flow(n: int) -> str:
        size = qflow.choice({"large": "n > 10"}, default="small", n=n)
        with size.branch("large"):
            large = half(n)
        with size.branch("small"):
            small = half(n)
        with qflow.after(large, small):
            return shout(n)

    assert "30!" == flow.run_local(30)


def test_what_failed_breaks_the_join_that_reads_it() -> None:
    @qflow.workflow
    def flow(n: int) -> str:
        lost = fail.options(continue_on_failure=True)(n)
        merged = merge(lost, half(n))
        return either.options(join="any")(merged, shout(n))

    assert "4!" == flow.run_local(4)


def test_what_comes_last_runs_whatever_it_reads() -> None:
    seen: list[str] = []

    def clean(a: int = -1) -> int:
        seen.append(f"clean {a}")
        return a

    cleaning = qflow.node(clean)

    @qflow.workflow
    def flow(n: int) -> int:
        failed = fail(n)
        with qflow.finally_():
            cleaning(failed)
        return failed

    with pytest.raises(qflow.ExecutionFailedError):
        flow.run_local(1)
    assert ["clean -1"] == seen


def test_a_condition_reads_literals_too() -> None:
    @qflow.workflow
    def flow() -> str:
        skipped = half.options(condition="n > 3")(1)
        return either.options(join="any")(shout(skipped), shout(half.options(condition="n > 3")(9)))

    assert "4!" == flow.run_local()


def test_what_one_node_does_to_its_input_no_other_sees() -> None:
    def spoil(x: Any) -> int:
        x.append(0)
        return len(x)

    def count_of(x: Any, after: int) -> int:
        return len(x) + 0 * after

    spoiling, counting = qflow.node(spoil), qflow.node(count_of)

    @qflow.workflow
    def flow(x: Any) -> int:
        return counting(x, spoiling(x))

    assert 1 == flow.run_local([7])


async def test_an_async_node_runs_where_a_loop_runs_already() -> None:
    assert 14.0 == squares.run_local([1, 2, 3])


def test_a_node_that_leaves_is_a_failure() -> None:
    def leave(n: int) -> int:
        raise SystemExit(0)

    leaving = qflow.node(leave)

    @qflow.workflow
    def flow(n: int) -> int:
        return leaving(n)

    with pytest.raises(qflow.ExecutionFailedError, match="leave: SystemExit: 0"):
        flow.run_local(1)


def test_a_workflow_that_calls_itself_is_refused() -> None:
    @qflow.workflow
    def flow(n: int) -> int:
        return flow(n)

    with pytest.raises(qflow.AuthoringError, match="flow calls itself"):
        flow.run_local(1)


def test_what_travels_as_a_file_is_handed_on_as_it_is(tmp_path: Path) -> None:
    def write(folder: Path, text: str) -> Path:
        made = folder / "made"
        made.write_text(text)
        return made

    def read_back(path: Path) -> str:
        return path.read_text()

    writing, reading = qflow.node(write), qflow.node(read_back)

    @qflow.workflow
    def flow(folder: Path, text: str) -> str:
        return reading(writing(folder, text))

    assert "hé" == flow.run_local(tmp_path, "hé")


def test_an_input_that_is_a_file_is_given_by_its_reference() -> None:
    of = type_of(Path)
    reference = {"$file": "7c9e6679-7425-40de-944b-e07fc1f90ae7"}
    assert reference == values.to_plain(reference, of, name="input report")
    with pytest.raises(qflow.ValueTypeError, match=r"input report: a file travels as a file"):
        values.to_plain(Path("/etc/passwd"), of, name="input report")


def test_a_workflow_is_not_called_like_a_function() -> None:
    with pytest.raises(qflow.AuthoringError, match=r"run it with client\.run"):
        weather("1")


def test_an_output_that_is_not_there_is_told_with_those_that_are() -> None:
    @qflow.workflow
    def flow(text: str) -> int:
        return count(read(text)["snow"])  # type: ignore[misc]

    with pytest.raises(qflow.AuthoringError, match="read gives rain, days, no 'snow'"):
        _ = flow.graph
