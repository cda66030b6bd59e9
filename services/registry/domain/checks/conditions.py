"""Check conditions: whether the names they read exist, and whether they can be boolean."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice, product
from typing import Any, Final

from qflow.types import ANY, SCALARS, Enum, Literal, Named, Type, Union, expression
from qflow.types.examples import examples
from qflow.types.model import CARRIED, walk
from qflow.types.values import dump_exact

from services.kit.cel import Expression, ExpressionError, compile_new
from services.registry.domain.checks.edges import source_type
from services.registry.domain.checks.state import Check
from services.registry.domain.constructs import Choice
from services.registry.domain.definition import Signature

_BOOL: Final = SCALARS["bool"]
_INT: Final = SCALARS["int"]
_TURN: Final = "turn"
# Types whose examples prove nothing: unknown values, and files that no condition reads.
_UNREAD: Final = frozenset({ANY, *(SCALARS[name] for name in CARRIED)})
_ALTERNATIVES: Final = (Union, Literal, Enum)
# Limits the combinations of examples per condition, and the futile ones per graph.
_TRIES_MAX: Final = 32
_VAIN_MAX: Final = 1_000


def conditions(check: Check, inputs: Mapping[str, Type]) -> None:
    """Check all conditions; `inputs` are the types of the workflow's inputs."""
    nodes = [
        (index, node)
        for index, node in enumerate(check.definition.nodes)
        if node.condition or node.loop is not None or isinstance(node.construct, Choice)
    ]
    if not nodes:
        return
    judge = _Judge(check)
    names: dict[str, list[str]] = {}
    for node_id, name in check.fed:
        names.setdefault(node_id, []).append(name)
    for index, node in nodes:
        place, fed = f"nodes[{index}]", names.get(node.id, ())
        if node.condition:
            types = _taken(check.known[index])
            judge.condition(f"{place}.condition", node.condition, fed, types)
        if isinstance(node.construct, Choice):
            arriving = judge.arriving(node.id, inputs)
            for at, each in enumerate(node.construct.branches):
                where = f"{place}.choice.branches[{at}].condition"
                judge.condition(where, each.condition, fed, arriving)
        signature = check.inner[index]
        if node.loop is not None and signature is not None:
            carried = {name for name, _ in node.loop.carry}
            types = {**_taken(signature), **signature.outputs, _TURN: _INT}
            known = {*fed, *carried, *signature.outputs, _TURN}
            judge.condition(f"{place}.repeat.condition", node.loop.condition, known, types)


def _taken(signature: Signature | None) -> dict[str, Type]:
    return {} if signature is None else {n: each.type for n, each in signature.inputs.items()}


@dataclass(slots=True)
class _Judge:
    """State shared by one graph's conditions: example texts, and the number of futile tries."""

    check: Check
    vain: int = 0
    texts: dict[int, tuple[bytes, ...]] = field(default_factory=dict)  # by id of the type
    edges: dict[str, list[int]] = field(default_factory=dict)  # indexes of value edges, by target

    def arriving(self, node: str, inputs: Mapping[str, Type]) -> dict[str, Type]:
        """Return the types of the unconverted values that edges bring to a place."""
        connections = self.check.definition.connections
        if not self.edges:
            for index in self.check.sound:
                if connections[index].is_value:
                    self.edges.setdefault(connections[index].target, []).append(index)
        found = {}
        for edge in (connections[index] for index in self.edges.get(node, ())):
            of = None if edge.conversion else source_type(self.check, edge, inputs)
            if of is not None:
                found[edge.target_input] = of
        return found

    def condition(
        self, place: str, text: str, names: Collection[str], types: Mapping[str, Type]
    ) -> None:
        """Check one condition over values of these types."""
        try:
            compiled = compile_new(text, names)
        except ExpressionError as error:
            self.check.error(place, "EXPRESSION_INVALID", str(error))
            return
        of = types.get(compiled.name_alone or "")
        if compiled.is_never_boolean:
            self._refuse(place, "this is never true or false")
        elif of is not None and not _may_be_boolean(of):
            self._refuse(place, f"{compiled.name_alone} is no bool")
        elif compiled.names <= types.keys():
            self._over_examples(place, compiled, types)

    def _refuse(self, place: str, message: str) -> None:
        self.check.error(place, "EXPRESSION_NOT_BOOLEAN", message, "compare it with something")

    def _over_examples(self, place: str, compiled: Expression, types: Mapping[str, Type]) -> None:
        """Report a condition that fails for all example values; one boolean result clears it."""
        if compiled.shape.is_branching or not compiled.names or self.vain > _VAIN_MAX:
            return  # the outcome may depend on values that no example has
        names = sorted(compiled.names)
        columns = [self._texts(types[name]) for name in names]
        tried, answers = 0, False
        for values in islice(product(*columns), _TRIES_MAX + 1):
            try:
                answer = compiled.evaluate(dict(zip(names, values, strict=True)))
            except ExpressionError as error:
                if not error.is_of_types:
                    return
            else:
                if isinstance(answer, bool):
                    return
                answers = True
            tried += 1
            self.vain += 1
        if not tried or tried > _TRIES_MAX:
            return
        if answers:
            self._refuse(place, "this is never true or false")
            return
        read = ", ".join(f"{name}: {expression(types[name])}" for name in names)
        hint = "compare values of one type; int(), double() and string() convert"
        message = f"this fails whatever the values are, by their types ({read})"
        self.check.error(place, "EXPRESSION_TYPES", message, hint)

    def _texts(self, of: Type) -> tuple[bytes, ...]:
        """Return example values as JSON texts; empty if they would prove nothing."""
        if id(of) not in self.texts:
            self.texts[id(of)] = tuple(dict.fromkeys(_examples(of)))
        return self.texts[id(of)]


def _examples(of: Type) -> Iterator[bytes]:
    members = of.any_of if isinstance(of, Union) else (of,)
    parts = [part for member in members for part in walk(member)]
    # The examples of a type with nested alternatives do not cover each of them.
    if any(part is not of and isinstance(part, _ALTERNATIVES) for part in parts):
        return
    if any(isinstance(part, Named) or part in _UNREAD for part in parts):
        return
    yield b"null"  # for a source that ends without a value
    for each in islice(examples(of), _TRIES_MAX):
        yield dump_exact(each).encode()
        yield dump_exact(_whole(each)).encode()  # a float may be written as an integer


def _whole(value: Any) -> Any:
    if isinstance(value, float):
        return 1
    if isinstance(value, list | tuple):
        return [_whole(each) for each in value]
    if isinstance(value, dict):
        return {name: _whole(each) for name, each in value.items()}
    return value


def _may_be_boolean(of: Type) -> bool:
    if isinstance(of, Union):
        return any(_may_be_boolean(each) for each in of.any_of)
    return of in (_BOOL, ANY) or getattr(of, "keys", None) is not None
