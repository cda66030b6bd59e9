"""Installs missing Pythons with uv, where the deployment asks for it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import structlog

from services.kit import child
from services.kit.pythons import find_pythons
from services.runner.domain.environments import without_addresses
from services.runner.gateways.uv import find_uv, uv_environment

log = structlog.get_logger()

_INSTALL_S: Final = 300.0
_OUTPUT_BYTES_MAX: Final = 1024 * 1024
# Where uv downloads them from, besides the settings shared with packages.
_PASSED_ON: Final = ("UV_PYTHON_INSTALL_MIRROR", "UV_PYTHON_DOWNLOADS_JSON_URL")


async def provide_pythons(versions: Sequence[str], *, folder: Path, env: Mapping[str, str]) -> None:
    """Install those versions that this machine lacks, before interpreters are searched.

    A failure is only logged, and the runner starts with the others: nodes that need a missing
    version are refused before they run.
    """
    if not versions:
        return
    here = await asyncio.to_thread(find_pythons)
    for version in versions:
        if version not in here:
            fault = await _install(version, folder=folder, env=env)
            if fault:
                log.error("python_not_provided", python_version=version, fault=fault)
            else:
                log.info("python_provided", python_version=version)
    find_pythons.cache_clear()


async def _install(version: str, *, folder: Path, env: Mapping[str, str]) -> str:
    """Install one version; return why it failed, or ""."""
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)  # noqa: ASYNC240 - once, at the start
    argv = [str(find_uv()), "python", "install", version, "--install-dir", str(folder)]
    argv += ["--no-bin", "--no-config", "--no-cache", "--quiet", "--color", "never"]
    try:
        done = await child.run(
            argv,
            stdin=b"",
            env={
                **uv_environment(env),
                **{name: env[name] for name in _PASSED_ON if env.get(name)},
                "UV_PYTHON_DOWNLOADS": "manual",
                "HOME": str(folder),
            },
            timeout_s=_INSTALL_S,
            output_bytes_max=_OUTPUT_BYTES_MAX,
            keep_stderr=True,
            umask=0o022,
        )
    except TimeoutError:
        return f"not finished within {_INSTALL_S:.0f} s"
    except child.OutputTooLargeError as problem:
        return str(problem)
    if done.code == 0:
        return ""
    return without_addresses(done.stderr.decode("utf-8", "replace")) or f"status {done.code}"
