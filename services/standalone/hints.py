"""Commands to copy, complete with this home, these ports and this Python."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parents[2]
HOME_DEFAULT: Final = CHECKOUT / ".qflow"


def standalone(command: str, *, home: Path) -> str:
    """Return a command of the suite, with a Python that has its dependencies."""
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    return f"{_settings(home, {})}{shlex.quote(str(python))} -m services.standalone {command}"


def make(target: str, *, home: Path, env: Mapping[str, str]) -> str:
    """Return a make command that works from the current folder."""
    folder = "" if Path.cwd() == CHECKOUT else f"-C {shlex.quote(str(CHECKOUT))} "
    return f"{_settings(home, env)}make {folder}{target}"


def _settings(home: Path, env: Mapping[str, str]) -> str:
    told = {} if home == HOME_DEFAULT else {"QFLOW_HOME": str(home)}
    if base := env.get("QFLOW_PORT_BASE"):
        told["QFLOW_PORT_BASE"] = base
    return "".join(f"{name}={shlex.quote(value)} " for name, value in told.items())
