"""Where a client finds its Qflow."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from qflow import ConfigurationError
from qflow.client.connection import Connection
from qflow.client.contexts import Context, Contexts, Tls, find, of_home

HERE = Context(registry="r:1", orchestrator="o:2", runner="n:3", telemetry="t:4", token="secret")


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path), "QFLOW_HOME": str(tmp_path / "suite")}


def test_a_kept_context_is_found_again_and_private(env: dict[str, str]) -> None:
    home = env.pop("QFLOW_HOME")
    kept = Contexts.load(env).put("prod", HERE)
    assert HERE == find(env)
    assert HERE == find(env, name="prod")
    with pytest.raises(ConfigurationError, match="none runs on"):
        find({**env, "QFLOW_HOME": home})  # whoever names a suite does not mean another
    assert 0o600 == stat.S_IMODE(kept.path.stat().st_mode)
    assert "secret" not in repr(HERE)


def test_tls_is_kept(env: dict[str, str]) -> None:
    safe = Context(registry="r", orchestrator="o", runner="n", telemetry="t", tls=Tls(ca_file="ca"))
    Contexts.load(env).put("safe", safe)
    assert safe == find(env, name="safe")


async def test_the_tenant_to_act_for_is_kept_told_by_the_environment_and_said_with_every_call(
    env: dict[str, str],
) -> None:
    team, other = "0190d6c1-5f2e-7c3a-9d5b-1f0e2d3c4b5a", "0190d6c1-5f2e-7c3a-9d5b-1f0e2d3c4b5b"
    Contexts.load(env).put("ours", replace(HERE, tenant=team))
    assert team == find(env, name="ours").tenant
    found = find({**env, "QFLOW_TENANT": other}, name="ours")
    assert other == found.tenant
    said: list[Any] = []

    async def method(_request: Any, **options: Any) -> str:
        said.append(options["metadata"])
        return "answer"

    assert "answer" == await Connection(found).call(method, None)
    assert [(("authorization", "Bearer secret"), ("qflow-tenant", other))] == said


def test_the_environment_comes_before_the_file(env: dict[str, str]) -> None:
    Contexts.load(env).put("prod", HERE)
    told = {f"QFLOW_{each}": "h:9" for each in ("REGISTRY", "ORCHESTRATOR", "RUNNER", "TELEMETRY")}
    assert "h:9" == find({**env, **told}).registry
    with pytest.raises(ConfigurationError, match="QFLOW_ORCHESTRATOR, QFLOW_RUNNER"):
        find({**env, "QFLOW_REGISTRY": "h:9"})


def test_the_suite_of_this_machine_comes_last(env: dict[str, str]) -> None:
    home = Path(env["QFLOW_HOME"])
    (home / "run").mkdir(parents=True)
    (home / "secrets").mkdir()
    addresses = {each: f"h:{each}" for each in ("registry", "orchestrator", "runner", "telemetry")}
    (home / "run" / "endpoints.json").write_text(json.dumps(addresses))
    (home / "secrets" / "owner.token").write_text("t\n")
    assert Context(**addresses, token="t") == find(env)  # type: ignore[arg-type]
    told = {**addresses, "authorities": "/there/authority.crt"}
    (home / "run" / "endpoints.json").write_text(json.dumps(told))
    assert Tls(ca_file="/there/authority.crt") == find(env).tls
    assert find(env) == of_home(home, env)


def test_none_at_all_says_how_to_tell_one(env: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="qflow login"):
        find(env)
    with pytest.raises(ConfigurationError, match="no context 'x'"):
        find(env, name="x")


def test_a_file_that_is_none_is_told_with_its_path(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"broken\.json cannot be read"):
        find({**env, "QFLOW_CONFIG": str(tmp_path / "broken.json")})


def test_a_forgotten_context_is_gone(env: dict[str, str]) -> None:
    Contexts.load(env).put("a", HERE).put("b", HERE).remove("b")
    assert ["a"] == list(Contexts.load(env).known)
    Contexts.load(env).use("a")
    assert "a" == Contexts.load(env).current
