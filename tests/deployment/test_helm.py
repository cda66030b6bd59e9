"""The chart: linted and rendered by helm, every manifest held against Kubernetes' own schemas."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from jsonschema import Draft4Validator

from services.kit import env as settings
from services.orchestrator.settings import Settings as OrchestratorSettings
from services.runner.settings import Settings as RunnerSettings
from services.standalone.addresses import SERVICES
from tests.support.tools import tool

_ROOT: Final = Path(__file__).resolve().parents[2]
_CHART: Final = _ROOT / "deploy" / "helm" / "qflow"
_SCHEMAS: Final = json.loads((Path(__file__).parent / "kubernetes" / "v1.34.json").read_text())
_ALL: Final = {
    "image": {"registry": "registry.example.org/qflow", "tag": "1", "pullSecrets": ["pull"]},
    "redisUrl": "redis://redis:6379/0",
    "settings": {"QFLOW_REFLECTION": 0},
    "files": {"s3": {"bucket": "qflow", "endpoint": "https://s3.example.org", "region": "x"}},
    "networkPolicy": {
        "clients": [{"namespaceSelector": {"matchLabels": {"team": "orders"}}}],
        "scrapers": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
        "egress": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
    },
    "gateway": {
        "enabled": True,
        "tlsSecret": "gateway-tls",
        "autoscaling": {"enabled": True, "minReplicas": 2, "maxReplicas": 4, "cpuPercent": 60},
        "disruptionBudget": {"enabled": True, "maxUnavailable": "25%"},
        "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
        "serviceAccount": {"annotations": {"role": "x"}},
        "podAnnotations": {"c": "d"},
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "qflow", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
    },
    "services": {
        name: {
            "autoscaling": {"enabled": True, "minReplicas": 2, "maxReplicas": 4, "cpuPercent": 60},
            "disruptionBudget": {"enabled": True, "maxUnavailable": "25%"},
            "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
            "serviceAccount": {"annotations": {"role": "x"}},
            "settings": {"QFLOW_POOL_SIZE_MAX": 12},
            "podAnnotations": {"c": "d"},
            "nodeSelector": {"kubernetes.io/arch": "amd64"},
            "tolerations": [{"key": "qflow", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
        }
        for name in SERVICES
    },
}


def helm(*arguments: str, values: Any = None, folder: Path) -> subprocess.CompletedProcess[str]:
    # Said, because a helm that was built without its makefile takes Kubernetes to be 1.20.
    given = ["--kube-version", "1.34.0"]
    if values is not None:
        (folder / "values.json").write_text(json.dumps(values))
        given += ["--values", str(folder / "values.json")]
    return subprocess.run(
        [tool("helm"), *arguments, *given],
        env={"HOME": str(folder), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


def rendered(folder: Path, values: Any = None) -> list[dict[str, Any]]:
    done = helm("template", "prod", str(_CHART), values=values, folder=folder)
    assert 0 == done.returncode, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def of_kind(manifests: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {
        each["metadata"]["name"].removeprefix("prod-qflow-"): each
        for each in manifests
        if each["kind"] == kind
    }


def pods(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found = {}
    for kind in ("Deployment", "StatefulSet", "Job"):
        for name, each in of_kind(manifests, kind).items():
            found[name] = each["spec"]["template"]["spec"]
    return found


def faults(manifest: dict[str, Any]) -> list[str]:
    group, _, version = manifest["apiVersion"].rpartition("/")
    short = group.removesuffix(".k8s.io") or "core"
    name = f"io.k8s.api.{short}.{version}.{manifest['kind']}"
    validator = Draft4Validator({**_SCHEMAS, "$ref": f"#/definitions/{name}"})
    assert name in _SCHEMAS["definitions"], name
    return [f"{name} {each.json_path}: {each.message}" for each in validator.iter_errors(manifest)]


@pytest.mark.parametrize("values", [None, _ALL], ids=["defaults", "everything"])
def test_the_chart_is_linted_and_kubernetes_would_take_all_that_it_renders(
    tmp_path: Path, values: Any
) -> None:
    done = helm("lint", "--strict", str(_CHART), values=values, folder=tmp_path)
    assert 0 == done.returncode, done.stdout + done.stderr
    manifests = rendered(tmp_path, values)
    assert [] == [fault for each in manifests for fault in faults(each)]
    gateway = set() if values is None else {"gateway"}
    assert {*SERVICES, "migrations", *gateway} == {*pods(manifests)}
    budgets, scaled = (
        of_kind(manifests, "PodDisruptionBudget"),
        of_kind(manifests, "HorizontalPodAutoscaler"),
    )
    if values is None:
        assert ({"registry", "orchestrator", "runner"}, set()) == ({*budgets}, {*scaled})
    else:
        assert ({*SERVICES, "gateway"}, {*SERVICES, "gateway"}) == ({*budgets}, {*scaled})
        replicas = [
            each["spec"].get("replicas") for each in of_kind(manifests, "Deployment").values()
        ]
        assert [None] * 4 == replicas, "whoever scales says how many"


def test_a_schema_finds_a_field_that_kubernetes_does_not_know(tmp_path: Path) -> None:
    manifest = of_kind(rendered(tmp_path), "Deployment")["registry"]
    manifest["spec"]["template"]["spec"]["containers"][0]["readOnlyRoot"] = True
    assert ["readOnlyRoot" in each for each in faults(manifest)] == [True]


def test_no_pod_may_more_than_it_needs_and_no_secret_stands_in_a_manifest(tmp_path: Path) -> None:
    manifests = rendered(tmp_path, _ALL)
    assert {} == of_kind(manifests, "Secret")
    for name, pod in pods(manifests).items():
        [container] = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert "RuntimeDefault" == pod["securityContext"]["seccompProfile"]["type"]
        assert {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        } == container["securityContext"]
        assert pod["automountServiceAccountToken"] is False
        assert "limits" in container["resources"]
        for each in container["env"]:
            assert "_DATABASE_URL" not in each["name"] or "secretKeyRef" in each["valueFrom"]
    accounts = {pod.get("serviceAccountName") for pod in pods(manifests).values()}
    assert {f"prod-qflow-{name}" for name in (*SERVICES, "gateway")} | {None} == accounts
    hooks = of_kind(manifests, "Job")["migrations"]["metadata"]["annotations"]
    assert "pre-install,pre-upgrade" == hooks["helm.sh/hook"]


def test_services_read_what_the_pods_set(tmp_path: Path) -> None:
    """The settings that a chart names are those that the services know."""
    secret = {"QFLOW_SERVICE_TOKEN": "t"}
    for name, known in (("orchestrator", OrchestratorSettings), ("runner", RunnerSettings)):
        pod = pods(rendered(tmp_path, _ALL))[name]
        told = {each["name"]: each.get("value", "10.0.0.1") for each in pod["containers"][0]["env"]}
        for file in [each for each in told if each.endswith("_FILE") and "WEBHOOK" not in each]:
            told.pop(file)
        urls = {
            f"QFLOW_{name.upper()}_{part}DATABASE_URL": "postgresql://x/y"
            for part in ("", "ENGINE_")
        }
        read = known.from_env(
            settings.with_secrets(
                {k: v for k, v in {**told, **urls, **secret}.items() if k != "QFLOW_SECRETS_FOLDER"}
                | {"QFLOW_HOME": str(tmp_path)}
            )
        )
        if isinstance(read, RunnerSettings):
            assert read.bucket is not None
            assert ("qflow", "T1") == (read.bucket.name, read.minimum_tier.value)
            assert ("prod-qflow-orchestrator:7122",) == read.attach_addresses
        else:
            assert "0.0.0.0:7122" == read.attach_listen


@pytest.mark.parametrize("own", ["", "gateway-tls"])
def test_a_gateway_sees_certificates_and_no_secret_of_a_service(tmp_path: Path, own: str) -> None:
    values = {"gateway": {"enabled": True, "tlsSecret": own}}
    pod = pods(rendered(tmp_path, values))["gateway"]
    shown = {
        item["path"]: (source["secret"]["name"], item["key"])
        for volume in pod["volumes"]
        for source in volume["projected"]["sources"]
        for item in source["secret"]["items"]
    }
    pair = ("gateway-tls", "tls") if own else ("qflow-registry", "service")
    assert {
        "authority.crt": ("qflow-registry", "authority.crt"),
        "tls.crt": (pair[0], f"{pair[1]}.crt"),
        "tls.key": (pair[0], f"{pair[1]}.key"),
    } == shown
    source = "".join((_ROOT / "deploy" / "gateway" / "main.go").read_text("utf-8")) + "".join(
        each.read_text("utf-8") for each in (_ROOT / "clients" / "go").glob("*.go")
    )
    for each in pod["containers"][0]["env"]:
        assert each["name"] in source or f'"{each["name"].lower()[6:]}"' in source, each


def test_runners_of_which_there_are_several_need_a_store_they_share(tmp_path: Path) -> None:
    values = {"services": {"runner": {"replicas": 2}}}
    done = helm("template", "prod", str(_CHART), values=values, folder=tmp_path)
    assert "set files.s3.bucket" in done.stderr
    assert 0 != done.returncode


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"services": {"registry": {"replica": 3}}}, "replica"),
        ({"redisUrl": "redis://:password@redis:6379"}, "redisUrl"),
        ({"settings": {"LOG_LEVEL": "info"}}, "LOG_LEVEL"),
        ({"services": {"runner": {"minimumTier": "T0"}}}, "minimumTier"),
        ({"gateway": {"enabled": True, "settings": {}}}, "settings"),
    ],
)
def test_values_that_mean_nothing_are_refused(tmp_path: Path, values: Any, place: str) -> None:
    done = helm("template", "prod", str(_CHART), values=values, folder=tmp_path)
    assert 0 != done.returncode
    assert place in done.stderr


def test_each_door_is_open_to_those_who_use_it_alone(tmp_path: Path) -> None:
    policies = of_kind(rendered(tmp_path, _ALL), "NetworkPolicy")
    assert {*SERVICES, "gateway", "closed"} == {*policies}
    assert ["Ingress"] == policies["closed"]["spec"]["policyTypes"]
    assert "ingress" not in policies["closed"]["spec"]
    for service, ports in (
        ("registry", {7101, 7111}),
        ("orchestrator", {7102, 7112, 7122}),
        ("runner", {7103, 7113, 7123}),
        ("telemetry", {7104, 7114}),
        ("gateway", {7180}),
    ):
        rules = policies[service]["spec"]["ingress"]
        assert ports == {each["port"] for rule in rules for each in rule["ports"]}
