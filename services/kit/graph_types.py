"""Types derived by a graph: those of built-in nodes, of maps, and of failures.

Both storing and starting a workflow check its edges against these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from uuid import UUID

from qflow.types import ANY, NONE, SCALARS, Collection, Dict, Type, union_of

CHOICE: Final = "choice"
SLEEP: Final = "sleep"
SIGNAL: Final = "signal"
APPROVAL: Final = "approval"

BUILTIN_IDS: Final = {
    kind: UUID(f"b1f10000-0000-7000-8000-{number:012d}")
    for number, kind in enumerate((CHOICE, SLEEP, SIGNAL, APPROVAL), start=1)
}

# Type of a failed place's output `error`: a dict of its id, the error's type and its message.
ERROR_TYPE: Final = Dict(SCALARS["str"], SCALARS["str"])
ANY_OR_NONE: Final = union_of((ANY, NONE))
_LIST: Final = "list"

# All of them are optional; a choice accepts further inputs.
BUILTIN_INPUTS: Final[Mapping[str, Mapping[str, Type]]] = {
    CHOICE: {},
    SLEEP: {"seconds": SCALARS["float"], "until": SCALARS["datetime"]},
    SIGNAL: {},
    APPROVAL: {"subject": ANY},
}


def builtin_outputs(kind: str, stated: Type | None) -> dict[str, Type]:
    """Return the output types of a built-in node; `stated` is the type declared for its value."""
    match kind:
        case "choice":
            return {"branch": union_of((SCALARS["str"], NONE))}
        case "sleep":
            return {"result": SCALARS["datetime"]}
        case "signal":
            return {"result": stated or ANY}
        case "approval":
            text = SCALARS["str"]
            flags: dict[str, Type] = {"approved": SCALARS["bool"], "comment": text}
            return flags | {"approver": text, "reply": stated or ANY_OR_NONE}
        case _:
            raise KeyError(kind)


def lists_of(of: Type, depth: int) -> Type:
    """Return the type of lists of a type, nested `depth` levels deep."""
    for _ in range(depth):
        of = Collection(_LIST, of)
    return of


def element_of(of: Type, depth: int) -> Type | None:
    """Return the type inside of `depth` levels of lists; None if there are fewer."""
    for _ in range(depth):
        if not isinstance(of, Collection) or of.kind != _LIST:
            return None
        of = of.item
    return of


def mapped_output(of: Type, depth: int, *, tolerates: bool) -> Type:
    """Return the output type of a place that runs per element; a tolerated failure is null."""
    return lists_of(union_of((of, NONE)) if tolerates else of, depth)
