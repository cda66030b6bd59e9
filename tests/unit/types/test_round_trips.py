"""What the runner's agent makes of values, held against what the types say of them."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from qflow.types import (
    SCALARS,
    Collection,
    Enum,
    Literal,
    Record,
    Tuple,
    Type,
    Union,
    VariadicTuple,
    ambiguous,
    check_value,
    dump_exact,
    parse_strict,
    to_json,
)
from qflow.types.model import CARRIED, FLAG, walk
from qflow.types.order import by_precision

from services.runner.agent import kinds
from services.runner.agent.codecs import Codecs
from services.runner.agent.problems import Mismatch
from services.runner.agent.unions import _shape
from tests.unit.types.strategies import TYPES, UNIONS, narrowed, scalars, values_of

# Python 3.11.2 has no flag for bits that stand in a member of several alone; the agent refuses what
# would come back as another value.
LOSES_BITS = int(enum.IntFlag("Loses", {"a": 3, "b": 4}, boundary=enum.CONFORM)(7)) != 7  # type: ignore[operator]
RELAXED = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)


class _Codecs(Codecs):  # type: ignore[misc]  # it has no annotations
    """The agent's, that take the reference of a file for its value: there is none here."""

    carried = ()


def _reference(_self: Any, _kind: Any, _depth: int) -> Any:
    def same(value: Any) -> Any:
        if not isinstance(value, dict) or value.keys() != {"$file"}:
            raise Mismatch("no reference")
        return value

    return same


for _name in CARRIED:
    setattr(_Codecs, f"_decode_{_name}", _reference)
    setattr(_Codecs, f"_encode_{_name}", _reference)


def _codecs(of: Type) -> Any:
    """Make the classes that a type names, as the node's code would have them."""
    namespace: dict[str, Any] = {}
    for each in walk(of):
        match each:
            case Enum(name=name, base=base, members=pairs) if base == FLAG:
                namespace[name] = enum.Flag(name, dict(pairs))
            case Enum(name=name, members=pairs):
                namespace[name] = enum.Enum(name, dict(pairs))
            case Record(kind="dataclass", name=name, fields=fields):
                namespace[name] = dataclasses.make_dataclass(name, [f.name for f in fields])
            case _:
                pass
    return _Codecs(namespace)


def _attempt(codec: Any, value: Any) -> tuple[Any, str]:
    """Give what a codec makes of a value, or why it refuses it."""
    try:
        return codec(value), ""
    except Mismatch as problem:
        return None, f"{problem.kind}: {problem}"


@RELAXED
@given(st.data(), TYPES | UNIONS | UNIONS.map(lambda of: Collection("list", of)))
def test_what_a_node_returns_is_read_back_as_it_was_or_refused(
    data: st.DataObject, of: Type
) -> None:
    """B40: no key, element or member of a union is silently another."""
    codecs = _codecs(of)
    returned = data.draw(narrowed(of))
    value, unlike = _attempt(codecs.decoder(to_json(returned)), data.draw(values_of(returned)))
    assume(not unlike)  # such as a set of lists: Python has no such value
    written, refused = _attempt(codecs.encoder(to_json(of)), value)
    if refused:
        assert refused.startswith("serialization_error"), (of, value, refused)
        assert ambiguous(of) is not None, (of, value, refused)
        return
    wire = parse_strict(dump_exact(written))
    assert check_value(of, wire) is None
    again = codecs.decoder(to_json(of))(wire)
    assert again == value
    # Where the member that it is of cannot carry an integer, one of floats may.
    loose = ambiguous(of) is not None
    assert _shape(again, loose) == _shape(value, loose)


def test_no_flag_of_a_union_is_taken_for_another() -> None:
    """B40: nothing set is a value of both, whichever bits their members have."""
    one, other = (Enum(name, FLAG, (("a", bits),)) for name, bits in (("One", 1), ("Other", 3)))
    of = Union((SCALARS["str"], one, other))
    classes: dict[str, Any] = {
        "One": enum.Flag("One", {"a": 1}),
        "Other": enum.Flag("Other", {"a": 3}),
    }
    codecs = Codecs(classes)
    encode, decode = codecs.encoder(to_json(of)), codecs.decoder(to_json(of))
    for value in (classes["One"](0), classes["One"](1), classes["Other"](3)):
        assert decode(encode(value)) is value
    _, refused = _attempt(encode, classes["Other"](0))
    assert refused.startswith("serialization_error")
    assert ambiguous(of) is not None


@RELAXED
@given(st.data(), TYPES | UNIONS)
def test_what_passes_the_check_is_read_by_the_agent(data: st.DataObject, of: Type) -> None:
    """Python holds no two equal elements or keys, nor unhashable ones: all else is read."""
    assume(not LOSES_BITS or not any(isinstance(e, Enum) and e.base == FLAG for e in walk(of)))
    codecs = _codecs(of)
    member = data.draw(narrowed(of))
    wire = data.draw(values_of(member))
    _, refused = _attempt(codecs.decoder(to_json(member)), wire)
    if refused:
        assert "hashable" in refused or "equal" in refused
    else:
        assert _attempt(codecs.decoder(to_json(of)), wire)[1] == ""


@given(st.lists(st.one_of(scalars, st.just(Literal((1,))), st.just(Tuple(()))), max_size=6))
def test_the_agent_tries_the_members_of_a_union_in_the_order_of_the_types(
    members: list[Type],
) -> None:
    members += [Collection(kind, VariadicTuple(SCALARS["int"])) for kind in ("set", "list")]
    ours = [to_json(each) for each in by_precision(members)]
    assert ours == kinds.by_precision([to_json(each) for each in members])
