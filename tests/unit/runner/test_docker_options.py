"""What a container is made with: each wall is there, and nothing that opens one."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from services.kit.env import EnvError
from services.runner.domain.limits import MIB, Limits, Tier
from services.runner.gateways.docker.host import home_name, tier_of
from services.runner.gateways.docker.options import Shape, create_options
from services.runner.gateways.sandbox.port import SandboxSpec
from services.runner.settings import Settings

SPEC = SandboxSpec(
    sandbox_id=UUID(int=7),
    python=Path("/usr/bin/python3.11"),
    prefix=Path("/usr"),
    agent=Path("/home/q/agent.pyc"),
    environment=Path("/home/q/environment"),
    limits=Limits(memory_bytes=64 * MIB, processes=9, open_files=99, temporary_bytes=5 * MIB),
)


def options(**more: Any) -> dict[str, Any]:
    shape = Shape(api_version="1.41", home="abc", incarnation="one", **more)
    made = create_options(
        shape, SPEC, image="sha256:1", python="python3.11", gate=Path("/home/q/gate")
    )
    return {**made, **made["host_config"]}


def test_a_container_has_every_wall() -> None:
    """E15 at T3."""
    made = options()
    assert {
        "NetworkMode": "none",
        "IpcMode": "private",
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "PidsLimit": 9,
        "Memory": 64 * MIB,
        "MemorySwap": 64 * MIB,
        "NanoCpus": 1_000_000_000,
        "ShmSize": 5 * MIB,
        "Tmpfs": {"/tmp": f"rw,noexec,nosuid,nodev,mode=1777,size={5 * MIB}"},
        "user": "65534:65534",
        "network_disabled": True,
        "stop_timeout": 5,
    }.items() <= made.items()
    assert {"nofile": 99, "fsize": 4096 * MIB, "core": 0} == {
        each["Name"]: each["Hard"] for each in made["Ulimits"]
    }
    assert ("local", "1m") == (made["LogConfig"]["Type"], made["LogConfig"]["Config"]["max-size"])


def test_nothing_opens_a_wall_again() -> None:
    made = options()
    for name in ("Privileged", "CapAdd", "Devices", "PidMode", "UsernsMode", "UTSMode", "Binds"):
        assert not made.get(name), name
    assert all(each["ReadOnly"] for each in made["Mounts"])
    assert {"/qflow/agent", "/qflow/gate", "/qflow/environment"} == {
        each["Target"] for each in made["Mounts"]
    }
    assert not any("docker.sock" in each["Source"] for each in made["Mounts"])
    assert not [name for name in made["environment"] if "QFLOW" in name or "TOKEN" in name]


def test_its_name_and_labels_say_whose_it_is_and_nothing_of_the_machine() -> None:
    made = options()
    assert f"qflow-abc-{SPEC.sandbox_id}" == made["name"]
    assert {
        "qflow.home": "abc",
        "qflow.sandbox": str(SPEC.sandbox_id),
        "qflow.incarnation": "one",
    } == made["labels"]
    assert home_name(Path("/home/q")) != home_name(Path("/home/r"))
    assert "home" not in home_name(Path("/home/q"))


def test_a_runtime_with_a_kernel_of_its_own_is_a_stronger_tier() -> None:
    assert "Runtime" not in options()
    assert "runsc" == options(runtime="runsc")["Runtime"]
    # Its threads are counted as the container's processes.
    assert 9 + 128 == options(runtime="runsc", own_kernel=True)["PidsLimit"]
    tiers = [tier_of(name) for name in ("", "runc", "crun", "runsc", "kata-qemu")]
    assert [Tier.T3, Tier.T3, Tier.T3, Tier.T4, Tier.T4] == tiers


@pytest.mark.parametrize("text", ["UPPER=1", "a b=1", f"{'x' * 64}=1", f"x={'y' * 64}"])
def test_a_label_that_no_node_could_require_stops_the_runner(text: str, tmp_path: Path) -> None:
    env = {
        "QFLOW_HOME": str(tmp_path),
        "QFLOW_RUNNER_DATABASE_URL": "a",
        "QFLOW_RUNNER_ENGINE_DATABASE_URL": "b",
        "QFLOW_SERVICE_TOKEN": "c",
    }
    assert {"zone": "eu", "fast": ""} == dict(
        Settings.from_env(env | {"QFLOW_RUNNER_LABELS": "zone=eu, fast"}).labels
    )
    with pytest.raises(EnvError, match="QFLOW_RUNNER_LABELS"):
        Settings.from_env(env | {"QFLOW_RUNNER_LABELS": text})
