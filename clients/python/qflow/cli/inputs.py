"""Inputs and start options from the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from qflow.cli.common import amounts_of
from qflow.cli.times import moment, span
from qflow.exceptions import AuthoringError

if TYPE_CHECKING:
    from qflow.registry.v1.workflow_pb2 import Workflow
    from qflow.types.model import Type

Given = Annotated[
    list[str] | None, typer.Argument(help="Inputs: NAME=VALUE.", metavar="[NAME=VALUE]…")
]
InputText = Annotated[str, typer.Option("--input", "-i", help="Inputs as a JSON object, or @FILE.")]

_NO_TYPES: Final[Mapping[str, Any]] = MappingProxyType({})


def inputs_of(given: list[str], text: str, types: Mapping[str, Type] = _NO_TYPES) -> dict[str, Any]:
    """Parse inputs: `NAME=VALUE`, a value as JSON or else as text, over `--input`.

    Where a type is known whose values are texts, what follows the `=` is that text: `zip=01234`.
    """
    inputs: dict[str, Any] = {}
    if text:
        try:
            source = Path(text[1:]).read_text("utf-8") if text.startswith("@") else text
            told = _json_of(source)
        except ValueError as error:
            raise AuthoringError(f"the input is not JSON in UTF-8: {error}") from None
        if not isinstance(told, dict):
            raise AuthoringError("the input is a JSON object of inputs by name")
        inputs.update(told)
    for each in given:
        name, equals, value = each.partition("=")
        if not equals:
            raise AuthoringError(f"an input is NAME=VALUE, not {each!r}")
        inputs[name] = _value_of(value, types.get(name))
    return inputs


def _value_of(text: str, of: Type | None) -> Any:
    try:
        value = _json_of(text)
    except _NamedTwiceError as error:
        raise AuthoringError(str(error)) from None
    except ValueError:
        return text
    return text if _is_text(of) and not isinstance(value, str) else value


def _is_text(of: Type | None) -> bool:
    """Return whether all values of a type are JSON texts, even if they look like numbers."""
    from qflow.types.model import Scalar

    return isinstance(of, Scalar) and of.name in {"str", "decimal"}


class _NamedTwiceError(ValueError):
    """An object has a duplicate name."""


def _json_of(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise AuthoringError("an input is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    told = dict(pairs)
    if len(told) < len(pairs):
        twice = next(name for at, (name, _) in enumerate(pairs) if name in dict(pairs[:at]))
        raise _NamedTwiceError(f"an object has the name {twice!r} twice")
    return told


def typed_inputs(
    of: str,
    types: Mapping[str, Type],
    hints: Mapping[str, Any] = _NO_TYPES,
    *,
    given: list[str],
    text: str,
) -> dict[str, Any]:
    """Decode JSON inputs by their types, with the classes of annotations."""
    from qflow import values

    inputs = inputs_of(given, text, types)
    for name in inputs:
        _known(of, types, name)
    return {
        name: values.from_plain(
            value,
            types[name],
            name=f"input {name}",
            classes=values.classes_in(hints.get(name)),
        )
        for name, value in inputs.items()
    }


def known_input(stored: Workflow, name: str) -> None:
    """Refuse inputs that a stored workflow does not have."""
    from qflow.client.client import input_types

    _known(stored.name, input_types(stored), name)


def _known(of: str, types: Mapping[str, Type], name: str) -> None:
    if name not in types:
        there = ", ".join(types) or "none"
        raise AuthoringError(f"{of} has no input {name!r} (there: {there})")


def stored_inputs(stored: Workflow, given: list[str], text: str) -> dict[str, Any]:
    """Decode JSON inputs by the declared types of a stored workflow."""
    from qflow.client.client import input_types

    return typed_inputs(stored.name, input_types(stored), given=given, text=text)


def stored_inputs_json(stored: Workflow, given: list[str]) -> str:
    """Return inputs for a stored workflow as JSON; the service checks them."""
    from qflow import values
    from qflow.client.client import input_types

    return values.dump(inputs_of(given, "", input_types(stored)))


def changed_inputs_json(
    stored: Workflow, before: str, given: list[str], *, without: str | None = None
) -> str:
    """Return inputs as JSON, with changes; the service checks them.

    `without` names an input whose earlier value is dropped.
    """
    from qflow import values
    from qflow.client.client import input_types

    kept = {name: value for name, value in json.loads(before).items() if name != without}
    return values.dump({**kept, **inputs_of(given, "", input_types(stored))})


def start_options(  # the arguments of the command
    key: str,
    on_conflict: str,
    on_reuse: str,
    budget: list[str],
    labels: list[str],
    priority: int,
    timeout: str,
    at: str,
) -> dict[str, Any]:
    """Parse the options of a start."""
    said = {"on_conflict": on_conflict, "on_reuse": on_reuse}
    keyed = {name: word for name, word in said.items() if word}
    if keyed and not key:
        raise AuthoringError(f"--{next(iter(keyed)).replace('_', '-')} is said of a --key")
    return {
        "business_key": key,
        **keyed,
        "labels": _labels_of(labels),
        "budget": amounts_of(budget),
        "priority": priority,
        "timeout": span(timeout) if timeout else None,
        "start_time": moment(at, now=datetime.now(UTC)) if at else None,
    }


def _labels_of(given: list[str]) -> dict[str, str]:
    labels = {}
    for each in given:
        key, equals, value = each.partition("=")
        if not (key and equals):
            raise AuthoringError(f"a label is KEY=VALUE, not {each!r}")
        labels[key] = value
    return labels
