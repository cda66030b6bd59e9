"""Programs that deployments are tested with: on PATH, or built by `.ci/tools`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

_TOOLS = Path(__file__).resolve().parents[2] / ".ci" / "tools"


def tool(name: str) -> str:
    """Give a program's path; CI has it there, elsewhere the test is left out where it is not."""
    found = subprocess.run([_TOOLS, "--built", name], capture_output=True, text=True, check=False)
    if found.returncode != 0:
        if os.environ.get("QFLOW_REQUIRE_TOOLS"):
            pytest.fail(found.stderr)
        pytest.skip(found.stderr.strip())
    return found.stdout.strip()
