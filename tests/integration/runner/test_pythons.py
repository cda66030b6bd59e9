"""Pythons that a deployment lets uv provide."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from pathlib import Path

import pytest

from services.kit import pythons
from services.kit.env import EnvError
from services.kit.pythons import find_pythons
from services.runner.gateways.uv_pythons import provide_pythons
from services.runner.settings import Settings


@pytest.mark.slow
async def test_a_python_that_is_missing_is_provided_and_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a mirror made here: a Python of this machine, packed as uv expects it."""
    known = find_pythons()
    version, found = next(iter(known.items()))
    name = f"cpython-{found.full_version}-linux-{platform.machine()}-gnu"
    packed = tmp_path / "cpython.tar.gz"
    left_out = ("*/test", "site-packages/*", "__pycache__", "*.a", "include")
    subprocess.run(  # noqa: ASYNC221 - nothing waits
        [
            *("tar", "-C", found.prefix.parent, "-czf", packed),
            *("--transform", f"s,^{found.prefix.name},python,"),
            *(f"--exclude={each}" for each in left_out),
            found.prefix.name,
        ],
        check=True,
    )
    major, minor, patch = map(int, found.full_version.split("."))
    build = {
        "name": "cpython",
        "arch": {"family": platform.machine(), "variant": None},
        "os": "linux",
        "libc": "gnu",
        "major": major,
        "minor": minor,
        "patch": patch,
        "prerelease": "",
        "url": packed.as_uri(),
        "sha256": hashlib.sha256(packed.read_bytes()).hexdigest(),
        "variant": None,
        "build": "20260101",
    }
    downloads = tmp_path / "downloads.json"
    downloads.write_text(json.dumps({name: build}))
    monkeypatch.setattr(pythons, "_candidates", lambda _: iter(()))
    find_pythons.cache_clear()
    folder = tmp_path / "home" / "pythons"
    env = {"UV_PYTHON_DOWNLOADS_JSON_URL": str(downloads)}
    await provide_pythons([version], folder=folder, env=env)
    monkeypatch.undo()
    monkeypatch.setenv("QFLOW_HOME", str(tmp_path / "home"))
    homes = [*pythons._homes({"QFLOW_HOME": str(tmp_path / "home")})]
    assert folder == homes[0]
    [program] = {each.resolve() for each in folder.glob(f"*/bin/python{version}")}
    asked = pythons.ask(program)
    find_pythons.cache_clear()
    assert asked is not None
    assert found.full_version == asked.full_version


async def test_without_the_setting_nothing_is_asked_for(tmp_path: Path) -> None:
    await provide_pythons([], folder=tmp_path / "pythons", env={})
    assert not (tmp_path / "pythons").exists()


def test_a_python_that_nobody_supports_stops_the_start(tmp_path: Path) -> None:
    env = {
        "QFLOW_HOME": str(tmp_path),
        "QFLOW_RUNNER_DATABASE_URL": "x",
        "QFLOW_RUNNER_ENGINE_DATABASE_URL": "x",
        "QFLOW_SERVICE_TOKEN": "x",
    }
    assert () == Settings.from_env(env).pythons_provided
    assert ("3.9", "3.14") == Settings.from_env(
        {**env, "QFLOW_PYTHONS_PROVIDED": "3.9, 3.14"}
    ).pythons_provided
    with pytest.raises(EnvError, match="QFLOW_PYTHONS_PROVIDED"):
        Settings.from_env({**env, "QFLOW_PYTHONS_PROVIDED": "2.7"})
    with pytest.raises(EnvError, match="QFLOW_WHEELHOUSE"):
        Settings.from_env({**env, "QFLOW_WHEELHOUSE": str(tmp_path / "none")})
    with pytest.raises(EnvError, match="QFLOW_PACKAGES_DENIED"):
        Settings.from_env({**env, "QFLOW_PACKAGES_DENIED": "x @ https://example.org"})
    rules = Settings.from_env({**env, "QFLOW_PACKAGES_DENIED": "Evil; numpy<2"}).packages.rules
    assert ("evil", "numpy<2") == rules.denied
