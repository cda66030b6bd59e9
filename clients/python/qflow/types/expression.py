"""Types as Python annotations."""

# Each function here is one table over the closed set of types.
# ruff: noqa: PLR0911

from __future__ import annotations

from qflow.types.model import (
    Collection,
    Dict,
    Enum,
    Literal,
    Named,
    Record,
    Scalar,
    Tuple,
    Type,
    Union,
    VariadicTuple,
)

_SPELLINGS = {
    "none": "None",
    "any": "Any",
    "decimal": "Decimal",
    "uuid": "UUID",
    "file": "Path",
    "ndarray": "numpy.ndarray",
    "arrow": "pyarrow.Table",
    "pandas": "pandas.DataFrame",
    "polars": "polars.DataFrame",
    "pickle": 'Annotated[Any, "pickle"]',
}


def expression(of: Type) -> str:
    """Return a type as an annotation would write it: `dict[str, list[int]] | None`."""
    match of:
        case Scalar(name=name):
            return _SPELLINGS.get(name, name)
        case Collection(kind=kind, item=item):
            return f"{kind}[{expression(item)}]"
        case Tuple(items=items):
            return f"tuple[{', '.join(map(expression, items)) or '()'}]"
        case VariadicTuple(item=item):
            return f"tuple[{expression(item)}, ...]"
        case Dict(key=key, value=value):
            return f"dict[{expression(key)}, {expression(value)}]"
        case Union(any_of=members):
            return " | ".join(map(expression, members))
        case Literal(values=values):
            return f"Literal[{', '.join(map(repr, values))}]" if values else "Never"
        case Record(name=name) | Enum(name=name) | Named(name=name):
            return name
