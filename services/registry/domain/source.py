"""What is known of a node's source, and the conversion of the analyzer's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qflow.types import (
    ANY,
    Record,
    Type,
    TypeFormatError,
    ValueTextError,
    ambiguous,
    check_value,
    expression,
    from_json,
    parse_strict,
)

from services.registry.domain.type_size import type_size

SEVERITIES: Final = ("error", "warning", "info")
_RANK: Final = {severity: rank for rank, severity in enumerate(SEVERITIES)}
# Records whose fields become separate outputs; a pydantic model stays one value.
_SPLIT_KINDS: Final = frozenset({"typeddict", "dataclass", "namedtuple"})
RESULT: Final = "result"
# Limits the work of checking defaults against their types, to about 20 ms in all. Beyond it, the
# function itself fills defaults in.
_DEFAULTS_COST_MAX: Final = 64 * 1024
_SHOWN_CHARS_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """A diagnostic on a source; an error prevents the source from becoming a node."""

    severity: str
    code: str
    message: str
    hint: str
    line: int = 0
    column: int = 0


@dataclass(frozen=True, slots=True)
class Parameter:
    """An input of a node."""

    name: str
    type: Type
    kind: str
    required: bool
    default_json: str | None


@dataclass(frozen=True, slots=True)
class Output:
    """An output of a node."""

    name: str
    type: Type


@dataclass(frozen=True, slots=True)
class Import:
    """An imported top-level module."""

    name: str
    modules: tuple[str, ...]
    line: int
    standard: bool
    guarded: bool
    column: int = 1


@dataclass(frozen=True, slots=True)
class Function:
    """The main function of a source."""

    name: str
    is_async: bool
    docstring: str
    inputs: tuple[Parameter, ...]
    outputs: tuple[Output, ...]


@dataclass(frozen=True, slots=True)
class SourceReport:
    """The result of analyzing a source; `function` is None if an error prevented that."""

    function: Function | None
    imports: tuple[Import, ...]
    diagnostics: tuple[Diagnostic, ...]
    # Names in annotations that the source does not define, and those found as custom types.
    unknown_types: tuple[str, ...] = ()
    custom_types: tuple[str, ...] = ()

    @property
    def errors(self) -> list[Diagnostic]:
        """The diagnostics that prevent the source from becoming a node."""
        return [each for each in self.diagnostics if each.severity == "error"]


def worst_first(diagnostics: Sequence[Diagnostic]) -> tuple[Diagnostic, ...]:
    """Sort diagnostics by severity, then by position."""
    return tuple(
        sorted(diagnostics, key=lambda each: (_RANK[each.severity], each.line, each.column))
    )


def failed(code: str, message: str, hint: str) -> SourceReport:
    """Return the report of a source that could not be analyzed at all."""
    return SourceReport(None, (), (Diagnostic("error", code, message, hint),))


def read_report(raw: Mapping[str, Any]) -> SourceReport:
    """Convert the output of the analyzer's process to values, checking its types."""
    diagnostics = [
        Diagnostic(**{name: each[name] for name in Diagnostic.__slots__})
        for each in raw["diagnostics"]
    ]
    imports = tuple(
        Import(
            each["name"],
            tuple(each["modules"]),
            each["line"],
            each["standard"],
            each["guarded"],
            each["column"],
        )
        for each in raw["imports"]
    )
    function = None
    if raw["function"] is not None:
        function = _function(raw["function"], diagnostics)
    return SourceReport(
        function,
        imports,
        worst_first(diagnostics),
        tuple(raw["unknown_types"]),
        tuple(raw["custom_types"]),
    )


def _function(raw: Mapping[str, Any], diagnostics: list[Diagnostic]) -> Function:
    inputs = []
    room = _DEFAULTS_COST_MAX
    for each in raw["parameters"]:
        of = _type(each["type"], each, diagnostics)
        default = each["default_json"]
        if default is not None:
            room -= len(default) * type_size(of)
        inputs.append(_parameter(each, of, default if room >= 0 else None, diagnostics))
    returns = _type(raw["returns"], raw, diagnostics)
    _warn_ambiguous("what is returned", returns, raw, diagnostics)
    outputs = outputs_of(returns)
    return Function(raw["name"], raw["is_async"], raw["docstring"], tuple(inputs), outputs)


def outputs_of(returns: Type) -> tuple[Output, ...]:
    """Return the outputs of a function: `result`, or the fields of the record that it returns.

    A record with an optional field stays whole, since an edge from that field could lack a value.
    So does a record whose single field is called `result`, which would be indistinguishable from
    it.
    """
    if (
        isinstance(returns, Record)
        and returns.kind in _SPLIT_KINDS
        and returns.fields
        and all(each.required or returns.kind != "typeddict" for each in returns.fields)
        and [each.name for each in returns.fields] != [RESULT]
    ):
        return tuple(Output(each.name, each.type) for each in returns.fields)
    return (Output(RESULT, returns),)


def _parameter(
    raw: Mapping[str, Any], of: Type, default: str | None, diagnostics: list[Diagnostic]
) -> Parameter:
    _warn_ambiguous(raw["name"], of, raw, diagnostics)
    if default is not None and not _is_value(of, default):
        diagnostics.append(
            Diagnostic(
                "warning",
                "DEFAULT_NOT_OF_TYPE",
                f"the default of {raw['name']} is not of its type; the function itself fills it in",
                "widen the type, or use another default",
                raw["line"],
                raw["column"],
            )
        )
        default = None
    return Parameter(raw["name"], of, raw["kind"], raw["required"], default)


def _warn_ambiguous(
    what: str, of: Type, at: Mapping[str, Any], diagnostics: list[Diagnostic]
) -> None:
    found = ambiguous(of)
    if found is None:
        return
    union, written, read = (
        expression(each)[:_SHOWN_CHARS_MAX] for each in (found.union, found.written, found.read)
    )
    diagnostics.append(
        Diagnostic(
            "warning",
            "UNION_AMBIGUOUS",
            f"in the type of {what}, {union}, what is written as {written} may be read as {read}",
            "declare one of them, or records that differ in their fields; what a function returns "
            "and would be read as another member fails",
            at["line"],
            at["column"],
        )
    )


def _is_value(of: Type, text: str) -> bool:
    try:
        return check_value(of, parse_strict(text)) is None
    except ValueTextError:
        return False


def _type(raw: object, at: Mapping[str, Any], diagnostics: list[Diagnostic]) -> Type:
    try:
        return from_json(raw)
    except TypeFormatError as error:
        diagnostics.append(
            Diagnostic(
                "error",
                "TYPE_NOT_UNDERSTOOD",
                f"the type {error}",
                "write a plainer type",
                at["line"],
                at["column"],
            )
        )
        return ANY
