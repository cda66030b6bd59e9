"""CEL, the language of conditions: compiled once, bounded in cost, and pure.

    Expression over the exact JSON texts of its values: size(rows) > 10 && status != "old"

`cel_shape` explains the bounds. Several threads may evaluate the same program at once.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from services.kit.cel_shape import EXPRESSION_BYTES_MAX, ExpressionError, Shape, shape_of

__all__ = [
    "EXPRESSION_BYTES_MAX",
    "VALUES_BYTES_MAX",
    "Expression",
    "ExpressionError",
    "compile_expression",
    "compile_new",
]

VALUES_BYTES_MAX: Final = 65_536
_VALUE_DEPTH_MAX: Final = 64
_INTEGER_MIN: Final = -(2**63)
_INTEGER_MAX: Final = 2**63 - 1
_INTEGER_CHARS_MAX: Final = 20
_LONG_INTEGER: Final = re.compile(rb"[0-9]{19}")  # may also be part of a string or a fraction
# One unit is about 5 ns; the maximum takes a fifth of a second.
_COST_MAX: Final = 40_000_000
# Cost of reading or copying a byte, for the shortest elements of a list.
_BYTE_COST: Final = 4
# Appending to a list copies it: 57 ns per element for each element.
_BUILT_COST: Final = 12
_MESSAGE_CHARS_MAX: Final = 300

_POSITION: Final = re.compile(r"ERROR: <input>:(\d+):(\d+): ([^\n]*)")
_COMPILED: Final = "cel.cel"
_loading = threading.Lock()
_library: Any = None


@dataclass(frozen=True, slots=True)
class Expression:
    """A compiled expression; `names` are the values that it reads."""

    text: str
    shape: Shape = field(compare=False)
    _program: Any = field(repr=False, compare=False)

    @property
    def names(self) -> frozenset[str]:
        """The names of the values that it reads."""
        return self.shape.names

    @property
    def name_alone(self) -> str | None:
        """The name of the value, if the expression is just that; else None."""
        return self.shape.name_alone

    @property
    def is_never_boolean(self) -> bool:
        """Whether its text shows that no values could make it true or false."""
        if self.shape.ternary:
            parts = (compile_expression(each, self.names) for each in self.shape.ternary)
            condition, *answers = [each.is_never_boolean for each in parts]
            return condition or all(answers)
        if self.name_alone or self.shape.is_relation:
            return False
        if not self.shape.names:
            try:
                return not isinstance(self.evaluate({}), bool)
            except ExpressionError:
                return True
        return self.shape.is_valued

    def evaluate(self, values: Mapping[str, bytes]) -> Any:
        """Evaluate it over exact JSON texts; every failure is an `ExpressionError`."""
        given = self._read(values)
        try:
            return self._program.execute(given)
        except Exception as error:  # noqa: BLE001 (the library raises many kinds, all of them faults of the expression)
            raise ExpressionError(_said(error), is_of_types=isinstance(error, TypeError)) from None
        except BaseException as error:
            # A panic of the library is not an Exception, and must not end the process.
            if type(error).__name__ == "PanicException":
                raise ExpressionError("this cannot be evaluated") from None
            raise

    def holds(self, values: Mapping[str, bytes]) -> bool:
        """Evaluate it to true or false; any other result is an `ExpressionError`."""
        answer = self.evaluate(values)
        if not isinstance(answer, bool):
            raise ExpressionError(f"true or false is needed, it gave {_kind_of(answer)}")
        return answer

    def _read(self, values: Mapping[str, bytes]) -> dict[str, Any]:
        texts = {name: values[name] for name in self.shape.names if name in values}
        missing = sorted(self.shape.names - texts.keys())
        if missing:
            raise ExpressionError(f"{missing[0]!r} has no value")
        size_bytes = sum(map(len, texts.values()))
        if size_bytes > VALUES_BYTES_MAX:
            limit = f"the limit is {VALUES_BYTES_MAX}"
            raise ExpressionError(f"the values it reads have {size_bytes} bytes, {limit}")
        read, longest = {}, 0
        for name, text in texts.items():
            read[name] = _parsed(name, text)
            longest = max(longest, _longest(name, read[name]))
            if _LONG_INTEGER.search(text):  # parsed to the nearest float
                _check_numbers(name, text)
        if _cost(self.shape, texts, longest) > _COST_MAX:
            raise ExpressionError(
                f"over values of {size_bytes} bytes, {longest} elements at most in one of them, "
                "this could take too long"
            )
        return read


def compile_expression(text: str, names: Collection[str]) -> Expression:
    """Compile an expression over `names`; `ExpressionError` says what is wrong and where."""
    shape = shape_of(text, frozenset(names))
    try:
        program = _loaded().compile(text)
    except Exception as error:  # noqa: BLE001 (as in evaluate)
        raise _syntax_error(text, str(error)) from None
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise ExpressionError("this is not an expression") from None
        raise
    return Expression(text, shape, program)


def compile_new(text: str, names: Collection[str]) -> Expression:
    """Compile an expression about to be stored: also refuses what would fail for all values.

    Not applied to stored expressions: a part that is never evaluated does no harm.
    """
    compiled = compile_expression(text, names)
    if compiled.shape.zoned:
        part = compiled.shape.zoned[0]
        raise ExpressionError(f"{part.text}() takes no arguments: times are in UTC", part.place + 1)
    for pattern in compiled.shape.patterns:
        try:
            compile_expression(f"''.matches({pattern.text})", ()).evaluate({})
        except ExpressionError as error:
            why = str(error).rpartition("error: ")[2]
            raise ExpressionError(
                f"this is not a valid pattern: {why}", pattern.place + 1
            ) from None
    return compiled


def _loaded() -> Any:
    """Load only the compiled module of the library, at first use.

    Its package also imports a command line with dependencies, which takes 0.4 s at each start.
    """
    global _library  # noqa: PLW0603 (loaded once for the process, like any module)
    with _loading:
        if _library is None:
            # Registered under its real name: a compiled module can be initialised only once per
            # process, so a later import of the package must get this one.
            if _COMPILED in sys.modules:
                _library = sys.modules[_COMPILED]
                return _library
            found = importlib.util.find_spec("cel")
            assert found
            assert found.submodule_search_locations
            folder = Path(found.submodule_search_locations[0])
            (file,) = folder.glob("cel.*.so")
            spec = importlib.util.spec_from_file_location("cel", file)
            assert spec
            assert spec.loader
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            _library = sys.modules[_COMPILED] = module
    return _library


def _parsed(name: str, text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except ValueError:
        pass
    try:
        _check_numbers(name, text)
    except ExpressionError:
        raise
    except (ValueError, RecursionError):
        pass
    raise ExpressionError(f"the value of {name!r} is not JSON")


def _check_numbers(name: str, text: bytes) -> None:
    """Raise for numbers in the text that CEL cannot represent."""

    def check_integer(digits: str) -> None:
        if len(digits) > _INTEGER_CHARS_MAX or not _INTEGER_MIN <= int(digits) <= _INTEGER_MAX:
            raise ExpressionError(f"{name!r} contains an integer of more than 64 bits")

    def check_double(digits: str) -> None:
        if math.isinf(float(digits)):
            raise ExpressionError(f"{name!r} contains a number beyond the largest double")

    json.loads(text, parse_int=check_integer, parse_float=check_double)


def _longest(name: str, value: Any) -> int:
    """Return the length of the longest list or object in a value; raises if it is out of bounds."""
    longest = 0
    level = [value]
    for _ in range(_VALUE_DEPTH_MAX):
        below: list[Any] = []
        for each in level:
            if isinstance(each, list | dict):
                longest = max(longest, len(each))
                below.extend(each if isinstance(each, list) else each.values())
            elif isinstance(each, int) and not _INTEGER_MIN <= each <= _INTEGER_MAX:
                raise ExpressionError(f"{name!r} contains an integer of more than 64 bits")
        if not below:
            return longest
        level = below
    raise ExpressionError(f"{name!r} is nested more than {_VALUE_DEPTH_MAX} deep")


def _cost(shape: Shape, texts: Mapping[str, bytes], longest: int) -> int:
    """Return an upper bound of the cost of evaluating over these values."""
    size_bytes = sum(map(len, texts.values())) + shape.text_bytes
    elements = max(longest, shape.elements_max) * (shape.plus + 1)
    cost = built_bytes = 0
    for macro in shape.macros:
        outside_bytes = sum(len(texts[name]) for name in macro.outside) + shape.text_bytes
        # Each iteration may read all outside values; the elements are read once each.
        turns_bytes = (elements * outside_bytes + size_bytes) * (macro.plus + 1)
        cost += _BYTE_COST * turns_bytes * (macro.operators + 1)
        if macro.builds:
            built_bytes += turns_bytes
            cost += _BUILT_COST * elements * elements
    # A macro may iterate over what another one built, and operators may compare or copy it.
    if built_bytes:
        cost *= min(len(shape.macros), 2)
    outside_bytes = (size_bytes + built_bytes) * (shape.plus + 1)
    return cost + _BYTE_COST * outside_bytes * (shape.operators + 1)


def _said(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"there is no field {error.args[0] if error.args else ''!r}"
    text = str(error).split("Check function arguments")[0].strip()
    return text[:_MESSAGE_CHARS_MAX] or "this cannot be evaluated"


def _syntax_error(text: str, said: str) -> ExpressionError:
    match = _POSITION.search(said)
    if match is None:
        return ExpressionError("this is not an expression")
    line, column, message = int(match[1]), int(match[2]), match[3]
    before = sum(len(each) for each in text.splitlines(keepends=True)[: line - 1])
    return ExpressionError(message.split(" expecting ")[0][:_MESSAGE_CHARS_MAX], before + column)


def _kind_of(value: Any) -> str:
    kinds = {type(None): "null", int: "a number", float: "a number", str: "text", list: "a list"}
    return kinds.get(type(value), "an object" if isinstance(value, dict) else "another value")
