"""Calls of nodes, as a sandbox makes them: decode, call, encode."""

from __future__ import annotations

import asyncio
import copy
import inspect
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

from qflow import values
from qflow.authoring.called import Called
from qflow.authoring.graph import Place
from qflow.authoring.node import Node
from qflow.exceptions import ExecutionFailedError
from qflow.types import Collection
from qflow.values import Codec


@dataclass(frozen=True, slots=True)
class _Codecs:
    inputs: Mapping[str, Codec]
    outputs: Mapping[str, Codec]
    is_one: bool


_compiled: Final[WeakKeyDictionary[Node[..., Any], _Codecs]] = WeakKeyDictionary()


def call(place: Place, node: Node[..., Any], plain: Mapping[str, Any]) -> Mapping[str, Any]:
    """Call a node with JSON values and return its outputs as such; retries follow at once."""
    codecs = _compiled.get(node) or _compile(node)
    arguments = {}
    for name, each in plain.items():
        value = codecs.inputs[name].from_plain(each, name=f"{place.id}: input {name!r}")
        # Copy what decoding did not create: it must not be shared with other nodes.
        shared = value is each and isinstance(value, list | dict)
        arguments[name] = copy.deepcopy(value) if shared else value
    left = place.options.retry.max_retries if place.options.retry else 0
    while True:
        try:
            value = node.function(**arguments)
            if inspect.isawaitable(value):
                value = _waited_for(value)
            break
        except (Exception, SystemExit) as error:
            kind, name = _kind_of(error), type(error).__name__
            if left <= 0 or not _retries(place, {kind, name}):
                raise ExecutionFailedError(
                    f"{name}: {error}", error_type=kind, node_id=place.id
                ) from error
            left -= 1
    return _encoded(place, codecs, value)


def literal(place: Place, name: str) -> Any:
    """Return the JSON value of a literal, as in the definition."""
    value = place.literals[name]
    if not isinstance(place.runs, Called) or name not in place.runs.inputs:
        return value
    of = place.runs.inputs[name].type
    if place.each is not None and place.each.input == name:
        of = Collection("list", of)
    classes = values.classes_in(place.runs.hints.get(name))
    return Codec(of, classes, is_local=True).to_plain(value, name=f"{place.id}.{name}")


def _compile(node: Node[..., Any]) -> _Codecs:
    inputs = {
        name: Codec(port.type, values.classes_in(node.hints.get(name)), is_local=True)
        for name, port in node.inputs.items()
    }
    classes = values.classes_in(node.hints.get("return"))
    outputs = {name: Codec(of, classes, is_local=True) for name, of in node.outputs.items()}
    made = _compiled[node] = _Codecs(inputs, outputs, set(outputs) == {"result"})
    return made


def _kind_of(error: BaseException) -> str:
    """Return the error type that a server would give."""
    if isinstance(error, SystemExit):
        return "exited"
    return "oom" if isinstance(error, MemoryError) else "user_error"


def _retries(place: Place, names: set[str]) -> bool:
    """Return whether a server would retry a failure with these names."""
    retry = place.options.retry
    if retry is None or not names.isdisjoint(retry.never_on):
        return False
    return not retry.on or not names.isdisjoint(retry.on)


def _waited_for(value: Any) -> Any:
    """Run an async node to its end; in a separate thread if an event loop is running here."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_awaited(value))
    with ThreadPoolExecutor(1) as beside:
        return beside.submit(asyncio.run, _awaited(value)).result()


async def _awaited(value: Any) -> Any:
    return await value


def _encoded(place: Place, codecs: _Codecs, value: Any) -> Mapping[str, Any]:
    if codecs.is_one:
        return {"result": codecs.outputs["result"].to_plain(value, name=f"{place.id}: output")}
    named = (
        value
        if isinstance(value, dict)
        else {name: getattr(value, name) for name in codecs.outputs}
    )
    return {
        name: codec.to_plain(named[name], name=f"{place.id}: output {name!r}")
        for name, codec in codecs.outputs.items()
        if name in named
    }
