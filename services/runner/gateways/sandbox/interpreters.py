"""The Pythons of this machine, each with the agent compiled for it."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from services.kit.pythons import Interpreter as Found
from services.runner.gateways.sandbox.port import Interpreter

_AGENT: Final = Path(__file__).resolve().parents[2] / "agent" / "agent.py"
_COMPILE: Final = """
import py_compile, sys
py_compile.compile(sys.argv[1], cfile=sys.argv[2], dfile="agent.py", doraise=True)
"""


def prepare_interpreters(found: Iterable[Found], folder: Path) -> dict[str, Interpreter]:
    """Compile the agent for each Python, once per version of both.

    A Python that cannot is left out. Without this each sandbox would compile the agent anew.
    """
    digest = hashlib.sha256(_AGENT.read_bytes()).hexdigest()[:16]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    prepared: dict[str, Interpreter] = {}
    for each in found:
        agent = folder / f"{each.full_version}-{digest}.pyc"
        if agent.exists() or _compile(each.path, agent):
            prepared[each.version] = Interpreter(
                version=each.version, executable=each.path, prefix=each.prefix, agent=agent
            )
    return prepared


def _compile(python: Path, target: Path) -> bool:
    staged = target.with_suffix(f".{os.getpid()}")
    try:
        subprocess.run(  # noqa: S603 - an interpreter found on this machine, our own file
            [str(python), "-I", "-S", "-c", _COMPILE, str(_AGENT), str(staged)],
            capture_output=True,
            timeout=20,
            check=True,
            env={},
        )
        staged.chmod(0o644)
        staged.replace(target)
    except (OSError, subprocess.SubprocessError):
        staged.unlink(missing_ok=True)
        return False
    return True
