"""The source of a node: what callers give, and what its analysis finds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from services.kit.caller import Caller
from services.kit.errors import FieldViolation, InvalidArgument
from services.kit.pg import Pool
from services.kit.pythons import VERSIONS
from services.registry.domain.requirements import (
    Requirement,
    check_python,
    declared_dependencies,
    suggested_dependencies,
)
from services.registry.domain.source import Diagnostic, Function, worst_first
from services.registry.gateways.source_analyzer.child import SourceAnalyzer
from services.registry.storage.custom_types import CustomType
from services.registry.usecases.custom_types import read_with_custom_types

CODE_BYTES_MAX: Final = 1024 * 1024
_BYTE_ORDER_MARK: Final = "\ufeff"
_MAIN_FAULTS: Final = "MAIN_FUNCTION_"
_VERSION_FAULT: Final = "PYTHON_VERSION_CONFLICT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """The fields of a node that callers set."""

    name: str = ""
    description: str = ""
    code: str = ""
    main_function: str = ""
    python_version: str = ""
    is_public: bool = False
    is_template: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """What the analysis of a source found."""

    function: Function
    python_version: str
    requirements: tuple[Requirement, ...]
    diagnostics: tuple[Diagnostic, ...]
    custom_types: tuple[CustomType, ...]


async def read_source(
    draft: Draft, caller: Caller, *, pool: Pool, analyzer: SourceAnalyzer, default: str
) -> Source:
    """Analyze a source; raises InvalidArgument with all its errors.

    Without a Python version it gets the default, if the source admits that.
    """
    _check_code(draft.code)
    declared = await asyncio.to_thread(declared_dependencies, draft.code)
    python_version = draft.python_version
    if not python_version:
        requires = declared.requires_python if declared else ""
        python_version = _fitting(default, requires)
    if python_version not in VERSIONS:
        description = f"must be one of {', '.join(VERSIONS)}"
        raise InvalidArgument(
            "PYTHON_VERSION_UNSUPPORTED",
            f"python_version {description}",
            fields=[FieldViolation("python_version", description, "PYTHON_VERSION_UNSUPPORTED")],
        )
    report, custom = await read_with_custom_types(
        pool,
        analyzer,
        caller,
        draft.code,
        main_function=draft.main_function,
        python_version=python_version,
    )
    dependencies = declared or suggested_dependencies(report.imports)
    found = [*report.diagnostics, *dependencies.diagnostics]
    conflict = check_python(dependencies.requires_python, python_version)
    if conflict is not None:
        found.append(conflict)
    diagnostics = worst_first(found)
    errors = [each for each in diagnostics if each.severity == "error"]
    if errors or report.function is None:
        raise _refused(errors)
    return Source(report.function, python_version, dependencies.requirements, diagnostics, custom)


def _fitting(default: str, requires: str) -> str:
    """Return the default version, or else the oldest that the source admits."""
    for version in (default, *VERSIONS):
        if check_python(requires, version) is None:
            return version
    return default


def without_mark(draft: Draft) -> Draft:
    """Remove a byte order mark: CPython accepts it in files, not in text."""
    return replace(draft, code=draft.code.removeprefix(_BYTE_ORDER_MARK))


def _check_code(code: str) -> None:
    description = ""
    if not code:
        description = "must not be empty"
    elif len(code.encode()) > CODE_BYTES_MAX:
        description = f"must have at most {CODE_BYTES_MAX} bytes"
    elif "\0" in code:
        description = "must not contain a NUL character"
    if description:
        raise InvalidArgument(
            "CODE_INVALID",
            f"code {description}",
            fields=[FieldViolation("code", description, "CODE_INVALID")],
        )


def _refused(errors: Sequence[Diagnostic]) -> InvalidArgument:
    codes = {each.code for each in errors}
    reason = codes.pop() if len(codes) == 1 else "SOURCE_INVALID"
    first = errors[0]
    place = f" (line {first.line}, column {first.column})" if first.line else ""
    more = f"; and {len(errors) - 1} more" if len(errors) > 1 else ""
    facts: dict[str, Any] = {}
    if first.line:
        facts = {"line": first.line, "column": first.column}
    return InvalidArgument(
        reason,
        f"{first.message}{place}{more}",
        fields=[_violation(each) for each in errors],
        **facts,
    )


def _violation(each: Diagnostic) -> FieldViolation:
    field = "code"
    if each.code.startswith(_MAIN_FAULTS) and not each.line:
        field = "main_function"
    elif each.code == _VERSION_FAULT:
        field = "python_version"
    place = f"line {each.line}, column {each.column}: " if each.line else ""
    hint = f"; {each.hint}" if each.hint else ""
    return FieldViolation(field, f"{place}{each.message}{hint}", each.code)
