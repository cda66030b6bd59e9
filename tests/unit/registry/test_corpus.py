"""Functions of popular packages, read as text and held against what Python says of them."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packaging.utils import canonicalize_name
from qflow.types import ValueTextError, expression, parse_strict, union_of, SCALARS, ANY

from services.registry.domain.requirements import suggested_dependencies
from services.registry.domain.source import Function, SourceReport, read_report
from services.registry.gateways.source_analyzer import analyze
from tests.support.runtime_types import Names, alike, expanded, type_of

# All are of the locks, so every machine reads the same sources.
PACKAGES = (
    *("alembic", "argon2", "charset_normalizer", "click", "dateutil", "docker", "hypothesis", "idna"),
    *("importlinter", "markdown_it", "msgspec", "numpy", "packaging", "pandas", "pathspec"),
    *("platformdirs", "psycopg", "pycparser", "pygments", "redis", "requests", "rich", "sqlalchemy"),
    *("structlog", "typing_extensions", "urllib3", "xdist"),
)
FUNCTIONS_PER_PACKAGE = 40
COMPLETE_MIN = 0.95


@dataclass
class Read:
    """One function as its source tells it and as Python has it."""

    name: str
    report: SourceReport
    real: Any
    names: Names
    annotated: bool
    faults: list[str] = field(default_factory=list)


@cache
def corpus() -> list[Read]:
    found = []
    for package in PACKAGES:
        functions = _functions(package)
        found += [read for _, read in zip(range(FUNCTIONS_PER_PACKAGE), functions, strict=False)]
    return found


def _functions(package: str) -> Iterator[Read]:
    root = Path(str(importlib.import_module(package).__file__))
    paths = [root] if root.name != "__init__.py" else sorted(root.parent.rglob("*.py"))
    for path in paths:
        parts = path.relative_to(root.parent if root.name == "__init__.py" else path.parent).parts
        if any(part.startswith(("test", "conftest")) for part in parts):
            continue
        name = ".".join([package, *parts]).removesuffix(".py").removesuffix(".__init__")
        yield from _of_module(path, name if len(paths) > 1 else package)


def _of_module(path: Path, name: str) -> Iterator[Read]:
    code = path.read_text(encoding="utf-8")
    tree = ast.parse(code)
    wanted = [
        each
        for each in tree.body
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
        and not each.name.startswith("_")
    ]
    if not wanted:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = importlib.import_module(name)
    except Exception:  # what a module needs may not be installed
        return
    names = Names(module, tree)
    for each in wanted:
        real = getattr(module, each.name, None)
        # One that a decorator or a later statement replaced is not what the source says.
        if not inspect.isfunction(real) or real.__code__.co_filename != str(path):
            continue
        if real.__code__.co_firstlineno not in range(each.lineno - 30, each.lineno + 1) or hasattr(real, "__wrapped__"):
            continue
        raw = analyze.analyze(code, each.name, [3, 11])
        given = [*each.args.posonlyargs, *each.args.args, *each.args.kwonlyargs]
        annotated = each.returns is not None and all(one.annotation for one in given)
        yield Read(f"{name}.{each.name}", read_report(raw), real, names, annotated)


def _compare(read: Read) -> None:
    """Hold what was read against `inspect.signature` and the evaluated annotations."""
    function = read.report.function
    if function is None:
        return
    real = inspect.signature(read.real)
    kinds = inspect.Parameter
    plain = [each for each in real.parameters.values() if each.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)]
    wanted = [
        (each.name, "keyword" if each.kind is kinds.KEYWORD_ONLY else "positional", each.default is kinds.empty)
        for each in plain
    ]
    if wanted != [(each.name, each.kind, each.required) for each in function.inputs]:
        read.faults.append(f"parameters: {wanted}")
        return
    if function.is_async != inspect.iscoroutinefunction(read.real):
        read.faults.append("async")
    for each, given in zip(function.inputs, plain, strict=True):
        if each.default_json is not None and not _same_default(each.default_json, given.default):
            read.faults.append(f"default of {each.name}: {each.default_json} {given.default!r}")
    _compare_types(read, function, plain)


def _same_default(text: str, real: object) -> bool:
    value = parse_strict(text)
    if isinstance(real, (bytes, complex, set, frozenset, tuple, dict, list)) or not isinstance(real, str|int|float|None):
        return True
    return value == real and type(value) is type(real)


def _compare_types(read, function, plain):
    hints = read.names.hints(read.real)
    if hints is None:
        read.faults.append("HINTS")
        return
    module = read.names.module.__name__
    for each, given in zip(function.inputs, plain, strict=True):
        meant = type_of(hints[each.name], module) if each.name in hints else ANY
        if given.default is None and each.name in hints and meant != ANY:
            meant = union_of([meant, SCALARS["none"]])
        got = expanded(each.type, read.names)
        if not alike(got, meant):
            read.faults.append(f"{each.name}: read {expression(each.type)}->{expression(got)} meant {expression(meant)}")
    if len(function.outputs) == 1 and "return" in hints:
        meant = type_of(hints["return"], module)
        got = expanded(function.outputs[0].type, read.names)
        if not alike(got, meant):
            read.faults.append(f"return: read {expression(function.outputs[0].type)}->{expression(got)} meant {expression(meant)}")
