"""A wrong edge is an error in the editor: what mypy says of workflows."""

from __future__ import annotations

from pathlib import Path

import pytest
from mypy import api

ROOT = Path(__file__).resolve().parents[3]
TEXT = """
from __future__ import annotations

import qflow


@qflow.node
def size(text: str) -> int:
    return len(text)


@qflow.node
async def later(n: int, step: int = 1) -> str:
    return str(n + step)


@qflow.workflow
def right(text: str) -> list[str]:
    words = later(size(text), step=2)
    each: list[list[str]] = right_too.each(max_in_flight=2).map([text])
    return later.map([size(words)])


@qflow.workflow
def right_too(text: str) -> list[str]:
    return later.map([size(text)])


@qflow.workflow
def wrong(text: str) -> int:
    n = size(text)
    later(text)  # 1
    later(n, steps=2)  # 2
    return later(n)  # 3


async def called(client: qflow.Client) -> None:
    found: list[str] = await client.run(right, "a")
    await client.run(right, 3)  # 4
    other: int = await client.run(right, "a")  # 5
    print(found, other, right.run_local(text="a"))
"""


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_wrong_edge_is_a_static_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "flows.py"
    path.write_text(TEXT, "utf-8")
    monkeypatch.chdir(ROOT)
    said, _, _ = api.run(
        ["--strict", "--no-error-summary", f"--cache-dir={tmp_path}/cache", str(path)]
    )
    marked = [n for n, line in enumerate(TEXT.splitlines(), 1) if "  # " in line]
    found = sorted({int(line.split(":")[1]) for line in said.splitlines() if ": error:" in line})
    assert marked == found, said
