"""Refs: placeholders for values while a workflow is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from qflow.exceptions import AuthoringError

if TYPE_CHECKING:
    from qflow.authoring.graph import Place


@dataclass(frozen=True, slots=True)
class Source:
    """The source of a value: an output of a place, or (without one) an input of the workflow."""

    place: Place | None
    output: str

    def __str__(self) -> str:
        return f"{self.place.id}.{self.output}" if self.place else f"input {self.output}"


class Ref:
    """A value that a run will have. It can be passed to nodes, and nothing else.

    Named outputs are selected with `weather["rain_mm"]` if the node returns a TypedDict, or with
    `weather.rain_mm` if it returns a dataclass or a NamedTuple.
    """

    __slots__ = ("_outputs", "_place")

    def __init__(self, place: Place | None, outputs: tuple[str, ...]) -> None:
        self._place = place
        self._outputs = outputs

    def __getitem__(self, output: str) -> Ref:
        return self._one(output)

    def __getattr__(self, output: str) -> Ref:
        if output.startswith("__"):
            raise AttributeError(output)
        return self._one(output)

    def _one(self, output: str) -> Ref:
        if self._place is not None and output in self._outputs:
            return Ref(self._place, (output,))
        if self._place is None or len(self._outputs) == 1:
            raise AuthoringError(
                f"{self!r} is one value: what stands in it is not known while the workflow is "
                "built. Take it apart in a node, or let the node return a TypedDict or dataclass, "
                "whose fields are outputs"
            )
        raise AuthoringError(f"{self._place.id} gives {', '.join(self._outputs)}, no {output!r}")

    def __repr__(self) -> str:
        return f"<the value of {self._place.id if self._place else 'an input'}>"

    def _not_yet(self, what: str) -> NoReturn:
        raise AuthoringError(
            f"{self!r} cannot be {what} while the workflow is built: do that in a node; for "
            "branches there is qflow.choice, for lists a node's .map"
        )

    def __bool__(self) -> bool:  # noqa: PLE0304  # it never returns
        self._not_yet("tested")

    def __iter__(self) -> Any:
        self._not_yet("iterated over")

    def __len__(self) -> int:  # noqa: PLE0303  # it never returns
        self._not_yet("counted")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Ref):
            return self is other
        return self._not_yet("compared")

    def __hash__(self) -> int:
        return id(self)

    def __call__(self, *_args: Any, **_named: Any) -> Any:
        """Refuse: the value does not exist yet."""
        self._not_yet("called")

    def __add__(self, _other: object) -> Any:
        self._not_yet("reckoned with")

    __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __add__
    __mod__ = __floordiv__ = __neg__ = __lt__ = __gt__ = __le__ = __ge__ = __add__


def source_of(ref: Ref) -> Source:
    """Return the source of a ref; raises AuthoringError if it has several outputs."""
    outputs: tuple[str, ...] = ref._outputs  # noqa: SLF001  # a ref's attributes are its outputs
    place: Place | None = ref._place  # noqa: SLF001
    if len(outputs) != 1:
        raise AuthoringError(f"{place.id if place else 'it'} gives {_choose(outputs)}")
    return Source(place, outputs[0])


def _choose(outputs: tuple[str, ...]) -> str:
    if not outputs:
        return "nothing that could be handed on"
    return (
        f"{', '.join(outputs)}, each by itself: hand on one of them, such as .{outputs[0]}; a "
        "record goes on as a whole where it is the field of another that the node returns"
    )


def place_of(ref: object) -> Place:
    """Return the place of a ref, for edges without a value."""
    place = ref._place if isinstance(ref, Ref) else None  # noqa: SLF001
    if place is None:
        raise AuthoringError("what is waited for is the value of a node")
    return place
