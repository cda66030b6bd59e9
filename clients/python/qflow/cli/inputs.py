"""What a shell gives to a run: inputs, as JSON or the text that a type takes, and how it starts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from qflow.cli.common import amounts_of
from qflow.cli.times import moment, span
from qflow.exceptions import AuthoringError

if TYPE_CHECKING:
    from qflow.registry.v1.workflow_pb2 import Workflow
    from qflow.types.model import Type

_NO_TYPES: Final[Mapping[str, Any]] = MappingProxyType({})


def inputs_of(given: list[str], text: str, types: Mapping[str, Type] = _NO_TYPES) -> dict[str, Any]:
    """Read the inputs of a run: `NAME=VALUE`, a value as JSON or else as text, over `--input`.

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
    """Whether all values of a type are texts as JSON has them, numbers to people among them."""
    from qflow.types.model import Scalar

    return isinstance(of, Scalar) and of.name in {"str", "decimal"}


class _NamedTwiceError(ValueError):
    """An object has a name twice, and which value was meant nobody knows."""


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
    """Read inputs that came as JSON by their types, with the classes that annotations name."""
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
    """Refuse the name of an input that a stored workflow does not have."""
    from qflow.client.client import input_types

    _known(stored.name, input_types(stored), name)


def _known(of: str, types: Mapping[str, Type], name: str) -> None:
    if name not in types:
        there = ", ".join(types) or "none"
        raise AuthoringError(f"{of} has no input {name!r} (there: {there})")


def stored_inputs(stored: Workflow, given: list[str], text: str) -> dict[str, Any]:
    """Read inputs that came as JSON by the types that a stored workflow declares."""
    from qflow.client.client import input_types

    return typed_inputs(stored.name, input_types(stored), given=given, text=text)


def stored_inputs_json(stored: Workflow, given: list[str]) -> str:
    """Write inputs for a stored workflow as JSON; whether they fit is for the service to say."""
    from qflow import values
    from qflow.client.client import input_types

    return values.dump(inputs_of(given, "", input_types(stored)))


def changed_inputs_json(
    stored: Workflow, before: str, given: list[str], *, without: str | None = None
) -> str:
    """Write inputs as JSON, some of them changed; whether they fit is for the service to say.

    `without` names an input whose earlier value is dropped.
    """
    from qflow import values
    from qflow.client.client import input_types

    kept = {name: value for name, value in json.loads(before).items() if name != without}
    return values.dump({**kept, **inputs_of(given, "", input_types(stored))})


def start_options(  # what the command was given
    key: str,
    on_conflict: str,
    on_reuse: str,
    budget: list[str],
    labels: list[str],
    priority: int,
    timeout: str,
    at: str,
) -> dict[str, Any]:
    """Read how a run is to be started."""
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
