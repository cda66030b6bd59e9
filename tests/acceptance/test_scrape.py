"""What a running suite tells Prometheus, and that the dashboard and the alerts ask for no more."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path
from typing import Final

import yaml
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from qflow.registry.v1 import session_service_pb2, session_service_pb2_grpc

from tests.support.suite import Suite

_DEPLOY: Final = Path(__file__).parents[2] / "deploy"
_NAME: Final = re.compile(r"\b(?:qflow|process)_[a-z_]+")
_SUFFIXES: Final = ("_bucket", "_sum", "_count", "_total")
# What a unit is called, where a name ends in one.
_UNITS: Final = ("seconds", "bytes")


def _pages(suite: Suite) -> dict[str, list[Metric]]:
    addresses = json.loads((suite.home.run / "metrics.json").read_text("utf-8"))
    pages = {}
    for name, address in addresses.items():
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            pages[name] = list(text_string_to_metric_families(answer.read().decode()))
    return pages


def _expressions() -> list[str]:
    rules = yaml.safe_load((_DEPLOY / "prometheus/alerts.yaml").read_text("utf-8"))
    alerts = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    board = json.loads((_DEPLOY / "grafana/qflow.json").read_text("utf-8"))
    return alerts + [t["expr"] for panel in board["panels"] for t in panel["targets"]]


async def test_every_name_in_the_dashboard_and_the_alerts_is_told_by_a_suite(suite: Suite) -> None:
    async with suite.channel("registry") as channel:
        stub = session_service_pb2_grpc.SessionServiceStub(channel)
        await stub.GetCaller(session_service_pb2.GetCallerRequest())
    pages = _pages(suite)
    assert {"registry", "orchestrator", "runner", "telemetry"} == set(pages)
    told = {each.name.removesuffix("_total") for page in pages.values() for each in page}
    # A family without a sample yet (no environment was built) is told by its name alone.
    told |= {name + suffix for name in told for suffix in _SUFFIXES}
    asked = {name for text in _expressions() for name in _NAME.findall(text)}
    assert asked
    assert asked - told == set()


async def test_what_is_told_follows_the_conventions_of_prometheus(suite: Suite) -> None:
    families = [each for page in _pages(suite).values() for each in page]
    ours = {e.name.removesuffix("_total"): e for e in families if e.name.startswith("qflow_")}
    assert ours
    for name, each in ours.items():
        assert re.fullmatch(r"qflow_[a-z]+(_[a-z]+)+", name)
        assert each.documentation.endswith(".")
        assert not name.endswith(("_total", "_ms", "_milliseconds", "_kb", "_percent"))
        for unit in _UNITS:  # the unit comes last, in base units
            assert f"_{unit}_" not in name, name
        if each.type == "counter":
            assert {sample.name for sample in each.samples} <= {f"{name}_total"}
        labels = {label for sample in each.samples for label in sample.labels}
        assert labels <= _LABELS, each.name


# Few values each, and none that says who somebody is: no id of a run, a tenant or a user.
_LABELS: Final = {
    *("service", "method", "code", "pool", "state", "cache", "status", "reason"),
    *("outcome", "subject", "table", "le"),
}
