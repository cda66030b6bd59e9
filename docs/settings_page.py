"""Write into docs/settings.md what the code says of each setting: kind, limits, default.

    python docs/settings_page.py            # write
    python docs/settings_page.py --check    # refuse a page that is not as the code is

The names, their order and what they mean stand in the page. A setting that is read and not
described is refused.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = ROOT / "docs" / "settings.md"
# Described beside what they are about.
_ELSEWHERE: Final = ("docs/backup.md", "docs/ray.md")
_OF_A_SERVICE: Final = re.compile(
    r"QFLOW_(REGISTRY|ORCHESTRATOR|RUNNER|TELEMETRY)_((ENGINE|AUTH|MAINT|DOCTOR)_(?=DATABASE))?"
)
# For the suite itself and its tests.
_INTERNAL: Final = frozenset({"QFLOW_STANDALONE", "QFLOW_TESTING", "QFLOW_RUNNER_TEST_BIND"})
_HEAD: Final = "| Variable | Takes | Default | Meaning |"
_NAME: Final = re.compile(r"`(QFLOW_[A-Z0-9_<>]+)`")
# The readers of services/kit/env.py; what a later one says is more than what an earlier one does.
_READERS: Final = ("required", "optional", "text", "path", "flag", "integer", "seconds")
_KINDS: Final = {"path": "path", "flag": "1 or 0", "seconds": "seconds", "integer": "whole number"}
_NO_LIMIT: Final = 2**31 - 1
_BYTES_NO_LIMIT: Final = 2**60
_UNITS: Final = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"))
_DAY_S: Final = 86_400


class Fact(NamedTuple):
    """How one place of the code reads a setting."""

    reader: str
    default: Any  # None where it depends on others, or there is none
    low: float | None
    high: float | None


def main(arguments: Sequence[str]) -> int:
    """Write or check the page."""
    known = facts()
    before = PAGE.read_text("utf-8")
    after = page(before, known)
    faults = list(undescribed(after, known))
    if arguments == ["--check"]:
        if after != before:
            faults.append("docs/settings.md is not as the code is: make settings")
    elif not faults:
        PAGE.write_text(after, "utf-8")
    for each in faults:
        print(each, file=sys.stderr)  # noqa: T201  # a program
    return 1 if faults else 0


def page(text: str, known: Mapping[str, Sequence[Fact]]) -> str:
    """Give the page with what the code says in every row of a table of settings."""
    lines, inside = [], False
    for line in text.splitlines():
        inside = line.startswith(_HEAD) or (inside and line.startswith("|"))
        lines.append(_row(line, known) if inside and line.startswith("| `") else line)
    return "\n".join(lines) + "\n"


def undescribed(text: str, known: Mapping[str, Sequence[Fact]]) -> Iterator[str]:
    """Name settings that are read and described nowhere."""
    others = "".join((ROOT / each).read_text("utf-8") for each in _ELSEWHERE)
    described = set(_NAME.findall(text + others))
    for name in sorted(set(known) - described - _INTERNAL):
        if _OF_A_SERVICE.sub("QFLOW_<SERVICE>_", name) not in described:
            yield f"{name} is read and not described: give it a row in docs/settings.md"


def _row(line: str, known: Mapping[str, Sequence[Fact]]) -> str:
    names, takes, default, meaning = line.strip("| ").split(" | ", 3)
    found = [name for name in _NAME.findall(names) if name in known]
    if found:
        takes = "; ".join(dict.fromkeys(_takes(known[name], name) for name in found))
    if len(found) == 1 and (figure := _default(known[found[0]], found[0])):
        default = figure
    return f"| {names} | {takes} | {default} | {meaning} |"


def _takes(there: Sequence[Fact], name: str) -> str:
    best = max(there, key=lambda fact: _READERS.index(fact.reader))
    kind = _KINDS.get(best.reader, "text")
    if best.reader not in {"integer", "seconds"}:
        return kind
    if "BYTES" in name:
        kind = "bytes"
    low = best.low or 0
    if best.high is None or best.high == _NO_LIMIT or best.high >= _BYTES_NO_LIMIT:
        return f"{kind}, from {_figure(low, name)}" if low else kind
    return f"{kind}, {_figure(low, name)} to {_figure(best.high, name)}"


def _default(there: Sequence[Fact], name: str) -> str:
    """Give the default of a figure or a switch; what else there may be is said in words."""
    plain = [fact.default for fact in there if fact.reader in {"integer", "seconds", "flag"}]
    figures = [each for each in plain if each is not None]
    if not figures or len(figures) < len(plain):
        return ""
    if isinstance(figures[0], bool):
        return str(int(figures[0]))
    low, high = min(figures), max(figures)
    return _figure(low, name) if low == high else f"{_figure(low, name)} to {_figure(high, name)}"


def _figure(value: float, name: str) -> str:
    if "BYTES" in name:
        for size, unit in _UNITS:
            if value >= size and value % size == 0:
                return f"{value // size:,.0f} {unit}"
    if name.endswith("_S") and value > _DAY_S and value % _DAY_S == 0:
        return f"{value // _DAY_S:,.0f} days"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.10g}"


def facts() -> Mapping[str, Sequence[Fact]]:
    """Read the services' code for every setting that it reads by name."""
    sys.path[:0] = [str(ROOT)]
    found: dict[str, list[Fact]] = defaultdict(list)
    for path in sorted((ROOT / "services").rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and (name := _named(call)):
                module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                found[name].append(_fact(call, importlib.import_module(module)))
    return found


def _named(call: ast.Call) -> str:
    """Give the setting that a call reads; of one whose name is put together, its shape."""
    reader = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    if reader not in _READERS or len(call.args) < 2:  # noqa: PLR2004  # the environment, the name
        return ""
    match call.args[1]:
        case ast.Constant(value=str() as name):
            pass
        case ast.JoinedStr(values=parts):
            plain = (each.value if isinstance(each, ast.Constant) else "<>" for each in parts)
            name = "".join(map(str, plain))
        case _:
            return ""
    if not name.startswith("QFLOW_") or name.count("<>") > 1:
        return ""
    return name.replace("NODE_<>", "NODE_<LIMIT>").replace("<>", "<SERVICE>")


def _fact(call: ast.Call, module: ModuleType) -> Fact:
    assert isinstance(call.func, ast.Attribute)
    named = {each.arg: each.value for each in call.keywords}
    given = named.get("default") or (call.args[2] if len(call.args) > 2 else None)  # noqa: PLR2004
    reader = call.func.attr
    default = False if given is None and reader == "flag" else _value(given, module)
    own = inspect.signature(getattr(importlib.import_module("services.kit.env"), reader)).parameters
    low, high = (
        _value(named[each], module) if each in named else getattr(own.get(each), "default", None)
        for each in ("low", "high")
    )
    return Fact(reader, default, low, high)


def _value(expression: ast.expr | None, module: ModuleType) -> Any:
    """Give what an expression of constants is; None for one that depends on anything else."""
    if expression is None:
        return None
    calls = [each.func for each in ast.walk(expression) if isinstance(each, ast.Call)]
    # A class gives the same everywhere; what a function gives is of the machine.
    if any(not ast.unparse(each)[0].isupper() for each in calls):
        return None
    try:
        value = eval(ast.unparse(expression), vars(module))  # noqa: S307  # the project's own code
    except NameError:
        return None
    return value if isinstance(value, int | float) else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
