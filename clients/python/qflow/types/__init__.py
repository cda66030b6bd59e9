"""Qflow's type system: types of values, and whether an edge can carry them.

Pure, and depends on the standard library only. The registry, orchestrator, runner and client all
use this package, so that they agree.
"""

from __future__ import annotations

from qflow.types.ambiguity import Ambiguity, ambiguous
from qflow.types.check import ValueFault, check_value
from qflow.types.codec import TypeFormatError, from_json, from_text, to_json, to_text
from qflow.types.conversions import LOSSLESS, LOSSY, METHODS
from qflow.types.convert import ConversionError, convert
from qflow.types.expression import expression
from qflow.types.model import (
    ANY,
    NONE,
    SCALARS,
    Collection,
    Dict,
    Enum,
    Field,
    Literal,
    Named,
    Record,
    Scalar,
    Tuple,
    Type,
    Union,
    VariadicTuple,
    contains_named,
    scalar,
    union_of,
)
from qflow.types.values import ValueTextError, dump_exact, parse_strict
from qflow.types.verdict import Verdict, VerdictKind, verdict

__all__ = [
    "ANY",
    "LOSSLESS",
    "LOSSY",
    "METHODS",
    "NONE",
    "SCALARS",
    "Ambiguity",
    "Collection",
    "ConversionError",
    "Dict",
    "Enum",
    "Field",
    "Literal",
    "Named",
    "Record",
    "Scalar",
    "Tuple",
    "Type",
    "TypeFormatError",
    "Union",
    "ValueFault",
    "ValueTextError",
    "VariadicTuple",
    "Verdict",
    "VerdictKind",
    "ambiguous",
    "check_value",
    "contains_named",
    "convert",
    "dump_exact",
    "expression",
    "from_json",
    "from_text",
    "parse_strict",
    "scalar",
    "to_json",
    "to_text",
    "union_of",
    "verdict",
]
