"""The Python interpreters of this machine, by version: real programs, never shims.

The registry analyses a node's source with the node's own Python, and the runner runs it there; both
look it up here, so that they use the same program.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

VERSIONS: Final = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")
_ASK_TIMEOUT_S: Final = 10.0
_ASK: Final = (
    "import sys; print('%d.%d.%d' % sys.version_info[:3], sys.implementation.name,"
    " sys.version_info.releaselevel, getattr(sys, '_base_executable', '') or sys.executable,"
    " sys.base_prefix, sep='\\n')"
)
_FULL: Final = re.compile(r"(\d+\.\d+)\.\d+")


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A CPython: `version` is `3.12`, `full_version` `3.12.1`; `prefix` has its library."""

    version: str
    full_version: str
    path: Path
    prefix: Path


def version_key(version: str) -> tuple[int, ...]:
    """Return the sort key of a version: 3.9 comes before 3.10."""
    return tuple(int(part) for part in version.split("."))


@functools.cache
def find_pythons() -> Mapping[str, Interpreter]:
    """Return this machine's interpreter of each supported version, oldest first.

    Searched once per process: this process's own Python, PATH, and the folders of pyenv, asdf and
    uv. Each is started to ask for its version, which takes some 20 ms; call it in a thread.
    """
    found: dict[str, Interpreter] = {}
    for version, path in _candidates(os.environ):
        if version not in found:
            interpreter = ask(path)
            if interpreter is not None and interpreter.version in VERSIONS:
                found.setdefault(interpreter.version, interpreter)
    return {version: found[version] for version in sorted(found, key=version_key)}


def closest(version: str) -> Interpreter | None:
    """Return the interpreter of a version, else of the next newer one, else the newest."""
    found = find_pythons()
    wanted = version_key(version)
    newer = [each for key, each in found.items() if version_key(key) >= wanted]
    return next(iter(newer or reversed(list(found.values()))), None)


def ask(path: Path) -> Interpreter | None:
    """Start a program to ask which Python it is; None if it is none, a shim or a pre-release."""
    if not _is_program(path):
        return None
    try:
        answer = subprocess.run(  # noqa: S603  # an interpreter found on this machine
            [path, "-I", "-S", "-c", _ASK],
            capture_output=True,
            timeout=_ASK_TIMEOUT_S,
            check=True,
            text=True,
        ).stdout.splitlines()
        full, implementation, level, base, prefix = answer
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    version = _FULL.fullmatch(full)
    if version is None or implementation != "cpython" or level != "final":
        return None
    # In a virtual environment it is a link; the base interpreter outlives that environment.
    program = Path(base) if _is_program(Path(base)) else path
    return Interpreter(version[1], full, program.resolve(), Path(prefix).resolve())


def _is_program(path: Path) -> bool:
    """Return whether this is an executable and no script: shims of version managers are scripts."""
    try:
        with path.open("rb") as file:
            head = file.read(2)
    except OSError:
        return False
    return head != b"#!" and os.access(path, os.X_OK)


def _candidates(env: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    own = ".".join(map(str, sys.version_info[:2]))
    yield own, Path(sys.executable)
    folders = [Path(entry) for entry in env.get("PATH", "").split(os.pathsep) if entry]
    for version in VERSIONS:
        for folder in folders:
            if (folder / f"python{version}").exists():
                yield version, folder / f"python{version}"
    for home in _homes(env):
        for installed in sorted(_listed(home), reverse=True):
            for version in VERSIONS:
                program = installed / "bin" / f"python{version}"
                if program.exists():
                    yield version, program


def _homes(env: Mapping[str, str]) -> Iterator[Path]:
    """Yield the folders where version managers and the runner keep one folder per Python."""
    if env.get("QFLOW_HOME"):
        yield Path(env["QFLOW_HOME"]) / "pythons"
    user = Path(env.get("HOME") or Path.home())
    yield Path(env.get("PYENV_ROOT") or user / ".pyenv") / "versions"
    yield Path(env.get("ASDF_DATA_DIR") or user / ".asdf") / "installs" / "python"
    data = Path(env.get("XDG_DATA_HOME") or user / ".local" / "share")
    yield Path(env.get("UV_PYTHON_INSTALL_DIR") or data / "uv" / "python")


def _listed(folder: Path) -> list[Path]:
    try:
        return [entry for entry in folder.iterdir() if entry.is_dir()]
    except OSError:
        return []
