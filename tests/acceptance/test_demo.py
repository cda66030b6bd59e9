"""The demo of `make demo`, on a running suite: its answers are those of plain Python."""

from __future__ import annotations

import ast
import io
import json
import re
from collections import Counter
from typing import Any

import pytest
from qflow.orchestrator.v1 import execution_service_pb2
from rich.console import Console

from examples import demo
from examples.weather import workflow as weather
from examples.weather.nodes.count_wet_days import count_wet_days
from examples.weather.nodes.daily_range import daily_range
from examples.weather.nodes.hottest_days import hottest_days
from examples.weather.nodes.rain_by_month import rain_by_month
from examples.weather.nodes.read_weather import read_weather
from examples.weather.nodes.share import share
from examples.weather.nodes.warming_trend import warming_trend
from examples.weather.nodes.write_report import write_report
from tests.support.client import COMPLETED, Client, connected
from tests.support.suite import Suite


async def test_the_demo_gives_what_plain_python_gives(suite: Suite) -> None:
    """And again with a row of the data dropped."""
    printed, execution_id = await run_demo(suite)
    table = weather.DATA.read_text("utf-8")
    async with connected(suite) as client:
        execution = await client.get(execution_id)
        assert in_plain_python(table) == json.loads(execution.output_json)
        assert [] == [line for line in report_of(execution) if line not in printed]

        fewer = without_a_row_with(table, "2014/08/11")
        again = await start_and_finish(client, execution.workflow_id, fewer)
        assert in_plain_python(fewer) == json.loads(again.output_json)
        # The dropped day mattered: it was the hottest of all.
        assert "2014-08-11" in execution.output_json
        assert "2014-08-11" not in again.output_json


async def test_the_demo_prints_no_colour_codes_into_a_pipe(suite: Suite) -> None:
    printed, _ = await run_demo(suite)
    assert "\x1b" not in printed
    assert "wet_share  completed" in printed
    assert "  15 exact, 3 conversions\n" in printed
    assert "├─► wet_days ─┤" in printed
    assert f"Bearer $(cat {suite.home.secrets}/owner.token)" in printed
    assert "conversion tuple_to_list (tuple[date, ...] -> list[date])" in printed
    assert "of tier T" in printed


async def test_the_demo_leaves_its_rows_in_the_tables_of_the_schema(suite: Suite) -> None:
    _, execution_id = await run_demo(suite)
    with suite.sql() as db:
        nodes = db.execute(
            "SELECT node_id, status, container_id, node_version_id FROM node_executions"
            " WHERE workflow_execution_id = %s",
            (execution_id,),
        ).fetchall()
        assert dict.fromkeys(weather.PLACES, "completed") == {node[0]: node[1] for node in nodes}
        sandboxes = [node[2] for node in nodes]
        tiers = db.execute(
            "SELECT DISTINCT resource_limits ->> 'isolation' FROM containers WHERE id = ANY(%s)",
            (sandboxes,),
        ).fetchall()
        assert {tier for (tier,) in tiers} <= {"T1", "T2"}
        # One interpreter serves one node version: eight nodes, eight sandboxes.
        assert len(weather.PLACES) == len(set(sandboxes))
        with_numpy = [node[2] for node in nodes if node[0] in {"trend", "spans"}]
        installed = db.execute(
            "SELECT container_id, installation_status FROM container_dependencies"
            " WHERE package_name = 'numpy' AND container_id = ANY(%s)",
            (with_numpy,),
        ).fetchall()
        assert dict.fromkeys(with_numpy, "completed") == dict(installed)
        flows = db.execute(
            "SELECT source_node_id, target_node_id, conversion FROM node_data_flow"
            " WHERE workflow_execution_id = %s",
            (execution_id,),
        ).fetchall()
    edges = [edge.replace(" > ", ".").split(".") for edge in weather.EDGES]
    between_nodes = Counter((start, end) for start, _, end, _ in edges if start)
    assert between_nodes == Counter((start, end) for start, end, _ in flows)
    converted = sorted((start, end, how) for start, end, how in flows if how)
    assert [
        ("hottest", "report", "tuple_to_list"),
        ("read", "wet_share", "int_to_float"),
        ("wet_days", "wet_share", "int_to_float"),
    ] == converted


def test_the_graph_of_the_demo_fans_out_and_joins() -> None:
    edges = [edge.replace(" > ", ".").split(".") for edge in weather.EDGES]
    successors = {end for start, _, end, _ in edges if start == "read"}
    predecessors = {start for start, _, end, _ in edges if end == "report" and start}
    assert len(weather.PLACES) >= 6
    assert len(successors) >= 3
    assert len(predecessors) >= 3


@pytest.mark.parametrize("name", weather.PLACES.values())
def test_a_node_is_a_plain_function(name: str) -> None:
    tree = ast.parse(weather.source(name))
    imported = {
        module.partition(".")[0]
        for each in ast.walk(tree)
        for module in (
            [alias.name for alias in each.names]
            if isinstance(each, ast.Import)
            else [each.module or ""]
            if isinstance(each, ast.ImportFrom)
            else []
        )
    }
    assert imported <= {"__future__", "calendar", "collections", "csv", "datetime", "io"} | {
        "typing",
        "numpy",
    }
    assert "qflow" not in weather.source(name).lower()


# What the tests are made of.


async def run_demo(suite: Suite) -> tuple[str, str]:
    """Run it as standalone does, into a pipe; give what it printed and the run's id."""
    written = io.StringIO()
    console = Console(file=written, highlight=False, soft_wrap=True)
    code = await demo.run(suite.endpoints, suite.home.secrets / "owner.token", console)
    printed = written.getvalue()
    assert code == 0, printed
    found = re.search(r'"execution_id": "([0-9a-f-]{36})"', printed)
    assert found is not None, printed
    return printed, found[1]


async def start_and_finish(client: Client, workflow_id: str, table: str) -> Any:
    started = await client.executions.StartExecution(
        execution_service_pb2.StartExecutionRequest(
            workflow_id=workflow_id, input_json=weather.inputs(table)
        )
    )
    finished = await client.finished(started.execution.id)
    assert finished.status == COMPLETED, finished.error
    return finished


def report_of(execution: Any) -> list[str]:
    lines: list[str] = json.loads(execution.output_json)["report"].splitlines()
    return lines


def without_a_row_with(table: str, text: str) -> str:
    rows = table.splitlines(keepends=True)
    kept = [row for row in rows if text not in row]
    assert len(rows) - 1 == len(kept)
    return "".join(kept)


def in_plain_python(table: str) -> dict[str, Any]:
    """Call the very functions, one after another, without Qflow; the outputs as JSON has them."""
    read = read_weather(table)
    wet_percent = share(float(count_wet_days(read["rain_mm"])), float(read["days"]))
    monthly = rain_by_month(read["day"], read["rain_mm"])
    hottest = list(hottest_days(read["day"], read["high_c"]))
    trend = warming_trend(read["day"], read["high_c"])
    spans = daily_range(read["high_c"], read["low_c"])
    place = json.loads(weather.inputs(table))["place"]
    report = write_report(place, wet_percent, monthly, hottest, trend["per_year_c"], spans)
    return {
        "report": report,
        "days": read["days"],
        "wet_percent": wet_percent,
        "monthly_mm": {str(month): amount for month, amount in monthly.items()},
        "hottest": [day.isoformat() for day in hottest],
        "per_year_c": trend["per_year_c"],
        "spread_c": trend["spread_c"],
        "daily_range_c": spans,
    }
