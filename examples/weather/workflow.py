"""The graph of the example: one table is read, looked at from five sides, and put into words.

                ┌─► wet_days ──► wet_share ─┐
csv_text ► read ┼─► monthly ────────────────┤
                ├─► hottest ────────────────┼─► report
                ├─► trend   (numpy) ────────┤     ▲
                └─► spans   (numpy) ────────┘   place
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from qflow.registry.v1 import workflow_pb2

NODES: Final = Path(__file__).parent / "nodes"
DATA: Final = Path(__file__).parent.parent / "data" / "seattle_weather.csv"

# The places of the graph and the function that runs at each: a file of `nodes` by its name.
PLACES: Final[Mapping[str, str]] = {
    "read": "read_weather",
    "wet_days": "count_wet_days",
    "wet_share": "share",
    "monthly": "rain_by_month",
    "hottest": "hottest_days",
    "trend": "warming_trend",
    "spans": "daily_range",
    "report": "write_report",
}

# Each edge carries one output (of the workflow's input, where no node stands before the point) to
# one input. Three of them fit only by a conversion, which the type check inserts.
EDGES: Final = (
    ".csv_text > read.csv_text",
    "read.rain_mm > wet_days.rain_mm",
    "wet_days.result > wet_share.part",  # int -> float
    "read.days > wet_share.whole",  # int -> float
    "read.day > monthly.day",
    "read.rain_mm > monthly.rain_mm",
    "read.day > hottest.day",
    "read.high_c > hottest.high_c",
    "read.day > trend.day",
    "read.high_c > trend.high_c",
    "read.high_c > spans.high_c",
    "read.low_c > spans.low_c",
    ".place > report.place",
    "wet_share.result > report.wet_percent",
    "monthly.result > report.monthly_mm",
    "hottest.result > report.hottest",  # tuple[date, ...] -> list[date]
    "trend.per_year_c > report.per_year_c",
    "spans.result > report.daily_range_c",
)

# What a run answers with.
OUTPUTS: Final[Mapping[str, str]] = {
    "report": "report.result",
    "days": "read.days",
    "wet_percent": "wet_share.result",
    "monthly_mm": "monthly.result",
    "hottest": "hottest.result",
    "per_year_c": "trend.per_year_c",
    "spread_c": "trend.spread_c",
    "daily_range_c": "spans.result",
}


def source(name: str) -> str:
    """Give the source of a node: all that Qflow is told of it."""
    return (NODES / f"{name}.py").read_text("utf-8")


def inputs(csv_text: str | None = None, *, place: str = "Seattle, 2012-2015") -> str:
    """Give the JSON text that starts a run, by default with the data that comes along."""
    given = {"csv_text": DATA.read_text("utf-8") if csv_text is None else csv_text, "place": place}
    return json.dumps(given, ensure_ascii=False)


def definition(node_ids: Mapping[str, str]) -> workflow_pb2.WorkflowDefinition:
    """Build the graph of nodes that are stored: the name of each -> its id."""
    return workflow_pb2.WorkflowDefinition(
        nodes=[
            workflow_pb2.WorkflowNode(id=place, node_id=node_ids[name])
            for place, name in PLACES.items()
        ],
        connections=[_connection(edge) for edge in EDGES],
        # No types: they are taken from what each input feeds.
        inputs=[workflow_pb2.WorkflowInput(name=name) for name in ("csv_text", "place")],
        outputs=[_output(name, end) for name, end in OUTPUTS.items()],
    )


def _connection(edge: str) -> workflow_pb2.Connection:
    source_end, target_end = edge.split(" > ")
    source_node, source_output = source_end.split(".")
    target_node, target_input = target_end.split(".")
    return workflow_pb2.Connection(
        source_node=source_node,
        source_output=source_output,
        target_node=target_node,
        target_input=target_input,
    )


def _output(name: str, end: str) -> workflow_pb2.WorkflowOutput:
    node, output = end.split(".")
    return workflow_pb2.WorkflowOutput(name=name, source_node=node, source_output=output)
