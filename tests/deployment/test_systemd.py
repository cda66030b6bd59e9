"""The units for one box: systemd reads them, and says how far what they start could reach."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from services.standalone.addresses import SERVICES

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze"
)
_UNITS: Final = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
# What systemd makes of each, 10 being a process that may do all: sandboxes need more of the kernel.
_EXPOSURE_MAX: Final = {
    "qflow@.service": 1.5,
    "qflow-provision.service": 1.5,
    "qflow-runner.service": 4.0,
    "qflow.service": 4.0,
}


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units as they are, but with a Python that this machine has."""
    for unit in _UNITS.iterdir():
        text = unit.read_text("utf-8").replace("/opt/qflow/bin/python", sys.executable)
        (tmp_path / unit.name).write_text(text, "utf-8")
    for service in SERVICES:
        if service != "runner":
            shutil.copy(tmp_path / "qflow@.service", tmp_path / f"qflow@{service}.service")
    return tmp_path


def analyzed(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "SYSTEMD_UNIT_PATH": f"{folder}:"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_systemd_finds_no_fault_in_the_units(installed: Path) -> None:
    units = sorted(each.name for each in installed.iterdir() if "@." not in each.name)
    assert len(units) == len(list(_UNITS.iterdir())) - 1 + len(SERVICES) - 1
    done = analyzed("verify", "--man=no", "--recursive-errors=no", *units, folder=installed)
    assert (0, "") == (done.returncode, done.stderr)


@pytest.mark.parametrize("unit", _EXPOSURE_MAX)
def test_what_a_unit_starts_is_no_more_exposed_than_it_has_to_be(
    installed: Path, unit: str
) -> None:
    done = analyzed("security", "--offline=true", "--no-pager", f"./{unit}", folder=installed)
    level = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert level is not None, done.stdout + done.stderr
    assert float(level.group(1)) <= _EXPOSURE_MAX[unit], done.stdout


def test_every_service_is_started_by_the_target_after_its_secrets_are_there() -> None:
    wanted = re.search(
        r"^Wants=(.*)$", (_UNITS / "qflow-services.target").read_text(), re.MULTILINE
    )
    assert wanted is not None
    names = {each.removesuffix(".service").split("@")[-1] for each in wanted.group(1).split()}
    assert {*SERVICES} == {each.removeprefix("qflow-") for each in names}
    for unit in ("qflow@.service", "qflow-runner.service"):
        assert "Requires=qflow-provision.service" in (_UNITS / unit).read_text()


def test_what_nobody_asked_systemd_to_stop_is_started_again() -> None:
    """Whatever it ended with: a service that is told to end by a signal ends with 0."""
    stays = {
        unit.name: re.findall(r"^Restart=(.*)$", unit.read_text("utf-8"), re.MULTILINE)
        for unit in _UNITS.glob("*.service")
        if "Type=oneshot" not in unit.read_text("utf-8")
    }
    assert {
        each: ["always"] for each in ("qflow.service", "qflow@.service", "qflow-runner.service")
    } == stays
