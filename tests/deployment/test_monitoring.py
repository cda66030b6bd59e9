"""What the monitoring beside a deployment looks at is what the deployment shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

from services.standalone.addresses import SERVICES

_DEPLOY: Final = Path(__file__).resolve().parents[2] / "deploy"


def _read(place: str) -> Any:
    return yaml.safe_load((_DEPLOY / place).read_text("utf-8"))


def test_each_service_is_scraped_where_it_listens() -> None:
    services = _read("compose.yaml")["services"]
    listens = {}
    for name in SERVICES:
        told = services[name]["environment"][f"QFLOW_{name.upper()}_METRICS_LISTEN"]
        listens[name] = f"{name}:{told.rpartition(':')[2]}"
    [job] = _read("prometheus/prometheus.yaml")["scrape_configs"]
    [targets] = [each["targets"] for each in job["static_configs"]]
    assert {*listens.values()} == {*targets}


def test_what_is_mounted_is_there_and_where_it_is_looked_for() -> None:
    services = _read("compose.yaml")["services"]
    mounted = {}
    for name in ("prometheus", "grafana"):
        for each in services[name]["volumes"]:
            source, place = each.split(":")[:2]
            if source.startswith("./"):
                assert (_DEPLOY / source).exists(), source
                mounted[place] = source
    assert [*_read("prometheus/prometheus.yaml")["rule_files"]] == ["/etc/prometheus/alerts.yaml"]
    assert "/etc/prometheus/alerts.yaml" in mounted
    [provider] = _read("grafana/provisioning/dashboards/qflow.yaml")["providers"]
    boards = [place for place in mounted if place.startswith(f"{provider['options']['path']}/")]
    assert ["/etc/qflow-dashboards/qflow.json"] == boards


def test_grafana_asks_the_prometheus_that_is_there() -> None:
    [source] = _read("grafana/provisioning/datasources/qflow.yaml")["datasources"]
    assert "http://prometheus:9090" == source["url"]
    assert "prometheus" in _read("compose.yaml")["services"]
