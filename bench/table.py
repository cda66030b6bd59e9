"""`python -m bench.table <file>…`: what benches printed, as the table of bench/RESULTS.md."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.benches import BENCHES


def main(files: list[str]) -> int:
    """Print a row for each bench that is in the files; of several lines of one the last counts."""
    told: dict[str, Mapping[str, Any]] = {}
    for file in files:
        for line in Path(file).read_text("utf-8").splitlines():
            if line.startswith('{"bench"'):
                one = json.loads(line)
                told[one["bench"]] = one
    print("| bench | value | floor | ratio | target | met |\n|---|--:|--:|--:|--:|---|")
    for name in BENCHES:
        if name in told:
            print(_row(name, told[name]))
    return 0


def _row(name: str, one: Mapping[str, Any]) -> str:
    unit = one["unit"]
    low, high = map(_figure, one["spread"])
    spread = "" if low == high else f" ({low} to {high})"
    floor = _figure(one["floor"]) if one["ratio"] is not None else ""
    ratio = f"{one['ratio']:.2f} x" if one["ratio"] is not None else ""
    bound = ("≤ " if one["better"] == "lower" else "≥ ") + _figure(one["target"])
    meaning = (BENCHES[name].__doc__ or "").split("\n")[0].rstrip(".")
    met = "yes" if one["met"] else "**no**"
    return (
        f"| {name}: {meaning} | {_figure(one['value'])} {unit}{spread} "
        f"| {floor} | {ratio} | {bound} | {met} |"
    )


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
