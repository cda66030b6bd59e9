"""The guide for Python is a program: its blocks run, in their order, against a suite."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.suite import Suite

ROOT = Path(__file__).resolve().parents[2]


def test_the_guide_for_python_runs(suite: Suite, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "python.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    path = tmp_path / "guide.py"
    path.write_text("\n".join(blocks), "utf-8")
    done = subprocess.run(
        [sys.executable, str(path)],
        env={**os.environ, "HOME": str(tmp_path), "QFLOW_HOME": str(suite.home.root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    assert "EXECUTION_NOT_FOUND" in done.stdout
