"""Functions of popular packages, read as text and held against what Python says of them."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pytest
from packaging.utils import canonicalize_name
from qflow.types import ANY, NONE, expression, parse_strict, union_of

from services.kit.pythons import find_pythons
from services.registry.domain.requirements import suggested_dependencies
from services.registry.domain.source import Function, SourceReport, read_report
from services.registry.gateways.source_analyzer import analyze as analyzer
from services.registry.gateways.source_analyzer.child import SourceAnalyzer
from tests.support.runtime_types import Names, alike, expanded, type_of

_ANALYZER: Any = analyzer  # it runs under Python 3.9 and has no annotations
# All stand in the locks, so that every machine reads the same sources.
PACKAGES: Final = (
    *("alembic", "charset_normalizer", "click", "dateutil", "docker", "hypothesis", "idna"),
    *("importlinter", "markdown_it", "msgspec", "numpy", "packaging", "pandas", "pathspec"),
    *("platformdirs", "psycopg", "pycparser", "pygments", "redis", "requests", "rich"),
    *("sqlalchemy", "structlog", "typing_extensions", "urllib3", "xdist"),
)
FUNCTIONS_PER_PACKAGE: Final = 20
FUNCTIONS_PER_MODULE: Final = 4
FUNCTIONS_MIN: Final = 300
COMPLETE_MIN: Final = 0.95
# What makes a node of it impossible, though the signature has been read.
RULES: Final = {"PARAMETER_VARIADIC", "MAIN_FUNCTION_GENERATOR", "RELATIVE_IMPORT"}
_VARIADIC: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Read:
    """One function as its source tells it, and as Python has it."""

    name: str
    code: str
    raw: dict[str, Any]
    report: SourceReport
    real: Any
    names: Names
    annotated: bool

    @property
    def unread(self) -> list[str]:
        """Why the signature could not be read whole."""
        return [each.code for each in self.report.errors if each.code not in RULES]


@cache
def corpus() -> list[Read]:
    return [
        read for package in PACKAGES for read in islice(_of_package(package), FUNCTIONS_PER_PACKAGE)
    ]


def _of_package(package: str) -> Iterator[Read]:
    root = Path(str(importlib.import_module(package).__file__))
    if root.name != "__init__.py":
        yield from islice(_of_module(root, package), FUNCTIONS_PER_MODULE)
        return
    for path in sorted(root.parent.rglob("*.py")):
        parts = path.relative_to(root.parent.parent).with_suffix("").parts
        if not any(part.startswith(("test", "conftest")) for part in parts):
            name = ".".join(parts).removesuffix(".__init__")
            yield from islice(_of_module(path, name), FUNCTIONS_PER_MODULE)


def _of_module(path: Path, name: str) -> Iterator[Read]:
    """Read the public functions of a module that it still has under their names."""
    code = path.read_text(encoding="utf-8")
    tree = ast.parse(code)
    found = [
        each
        for each in tree.body
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
        and not each.name.startswith("_")
        and not each.decorator_list
    ]
    if not found:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = importlib.import_module(name)
    except Exception:  # noqa: BLE001  # what an optional part needs is not installed, whatever that raises
        return
    names = Names(module, tree)
    for each in found:
        real = getattr(module, each.name, None)
        if inspect.isfunction(real) and real.__code__.co_firstlineno == each.lineno:
            raw = _ANALYZER.analyze(code, each.name, [3, 11])
            given = [*each.args.posonlyargs, *each.args.args, *each.args.kwonlyargs]
            annotated = each.returns is not None and all(one.annotation for one in given)
            report = read_report(raw)
            yield Read(f"{name}.{each.name}", code, raw, report, real, names, annotated)


@pytest.mark.slow
def test_what_is_fully_annotated_is_read_whole() -> None:
    annotated = [read for read in corpus() if read.annotated]
    assert len(annotated) >= FUNCTIONS_MIN
    whole = [read for read in annotated if read.report.function and not read.unread]
    assert len(whole) >= COMPLETE_MIN * len(annotated), [
        (read.name, read.unread) for read in annotated if read.unread
    ]


def test_what_could_not_be_read_is_explained_with_its_place() -> None:
    for read in corpus():
        for each in read.report.errors:
            assert each.message, read.name
            assert each.line, read.name
            assert each.hint, read.name
        if read.report.function is None:
            assert read.report.errors, read.name
    assert {code for read in corpus() for code in read.unread} <= {"TYPE_RECURSIVE"}


@pytest.mark.slow
def test_parameters_are_those_of_inspect_signature() -> None:
    for read in corpus():
        function = read.report.function
        assert function is not None, read.name
        real = _plain_parameters(read)
        assert [(each.name, each.kind, each.required) for each in function.inputs] == [
            (each.name, _kind(each), each.default is each.empty) for each in real
        ], read.name
        assert function.is_async == inspect.iscoroutinefunction(read.real), read.name
        for each, given in zip(function.inputs, real, strict=True):
            if each.default_json is not None and isinstance(given.default, bool | int | str | None):
                value = parse_strict(each.default_json)
                assert (value, type(value)) == (given.default, type(given.default)), read.name


def _plain_parameters(read: Read) -> list[inspect.Parameter]:
    parameters = inspect.signature(read.real).parameters.values()
    return [each for each in parameters if each.kind not in _VARIADIC]


def _kind(of: inspect.Parameter) -> str:
    return "keyword" if of.kind is of.KEYWORD_ONLY else "positional"


def test_types_are_those_that_python_evaluates() -> None:
    """Where Python can evaluate the annotations: some need stubs that no package has."""
    wrong, compared = [], 0
    for read in corpus():
        hints = read.names.hints(read.real)
        if hints is None or read.unread:
            continue
        compared += 1
        assert read.report.function is not None
        wrong += _other_types(read, read.report.function, hints)
    assert wrong == []
    assert compared >= FUNCTIONS_MIN


def _other_types(read: Read, function: Function, hints: dict[str, Any]) -> list[str]:
    module = read.names.module.__name__
    pairs = []
    for each, given in zip(function.inputs, _plain_parameters(read), strict=True):
        meant = type_of(hints[each.name], module) if each.name in hints else ANY
        if given.default is None and meant != ANY:
            meant = union_of([meant, NONE])  # `x: int = None` takes None
        pairs.append((each.name, each.type, meant))
    if "return" in hints and [each.name for each in function.outputs] == ["result"]:
        pairs.append(("return", function.outputs[0].type, type_of(hints["return"], module)))
    return [
        f"{read.name}({name}): {expression(found)} is read, {expression(meant)} is meant"
        for name, found, meant in pairs
        if not alike(expanded(found, read.names), meant)
    ]


def test_requirements_are_the_distributions_that_bring_the_imports() -> None:
    known = importlib.metadata.packages_distributions()
    found, wrong = 0, []
    for read in corpus():
        for each in suggested_dependencies(read.report.imports).requirements:
            first = each.import_name.split(".")[0]
            bring = {canonicalize_name(name) for name in known.get(first, ())}
            found += bool(bring)
            if bring and each.requirement not in bring:
                wrong.append((read.name, each.import_name, each.requirement))
        standard = [each.name for each in read.report.imports if each.standard]
        assert not set(standard) & known.keys() - {"xdrlib"}, read.name
    assert wrong == []
    assert found >= 100


@pytest.mark.skipif("3.11" not in find_pythons(), reason="needs Python 3.11")
async def test_the_bounded_child_reads_the_same() -> None:
    sample: Sequence[Read] = corpus()[::40]
    assert len(sample) >= 5
    for read in sample:
        name = read.real.__name__
        analysis = await SourceAnalyzer().analyze(
            read.code, main_function=name, python_version="3.11"
        )
        assert analysis.report == read.report, read.name
