"""CreateNode of a source of a thousand lines that needs no lock: what reading it takes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Final

from bench.flow import Flow

LINES: Final = 1_000
_ROUNDS: Final = 15
_HEAD: Final = '''"""Made to be measured."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from datetime import date
from typing import TypedDict


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Point:
    x: float
    y: float


class Report(TypedDict):
    total: float
    points: list[Point]
    by_day: dict[str, list[int] | None]


def run(points: list[Point], *, color: Color = Color.RED, since: date | None = None) -> Report:
    """Add the points up."""
    return {"total": math.fsum(each.x for each in points), "points": points, "by_day": {}}


'''
_STEP: Final = '''def _step_{at}(values: list[float], factor: float = {at}.5) -> dict[str, float]:
    """Weigh the values."""
    found = {{}}
    for place, value in enumerate(values):
        if value > factor and place % {modulus} == 0:
            found[f"{{place}}:{{value:.2f}}"] = math.sqrt(abs(value)) * factor
    return found


'''
_PARSE: Final = "import ast, sys; compile(ast.parse(sys.stdin.read()), 'node', 'exec')"


def source() -> str:
    """Write the source: one public function, types, and private ones up to a thousand lines."""
    text, at = _HEAD, 0
    while text.count("\n") < LINES:
        text += _STEP.format(at=at, modulus=at % 7 + 2)
        at += 1
    return text


async def spans_ms(flow: Flow) -> list[float]:
    """Create the node again and again; the whole call, as its caller sees it."""
    code, spans = source(), []
    for number in range(_ROUNDS + 2):
        begin = time.perf_counter()
        await flow.node(f"{code}# {number}\n")
        spans.append((time.perf_counter() - begin) * 1000)
    return spans[2:]


def floor_ms() -> float:
    """Measure a process of Python that parses and compiles the same text, and no more."""
    code, spans = source(), []
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", _PARSE], input=code, text=True, check=True
        )
        spans.append((time.perf_counter() - begin) * 1000)
    return statistics.median(spans)
