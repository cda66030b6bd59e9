from __future__ import annotations

import textwrap
from typing import Any

import pytest
from qflow.types import (
    SCALARS,
    Named,
    Record,
    VerdictKind,
    check_value,
    expression,
    to_json,
    verdict,
)

from services.kit.pythons import find_pythons
from services.registry.domain.source import SourceReport
from services.registry.gateways.source_analyzer.child import SourceAnalyzer

PRELUDE = """
from __future__ import annotations
import collections, datetime as dt, enum, typing as t
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NewType, Optional, TypedDict, TypeVar, Union
from uuid import UUID
import numpy as np
import pandas as pd
from pydantic import BaseModel, Field

class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"

class Level(enum.IntEnum):
    LOW = enum.auto()
    HIGH = enum.auto()

@dataclass
class Point:
    x: float
    y: float = 0.0
    tags: list[str] = field(default_factory=list)

class Row(TypedDict, total=False):
    a: t.Required[int]
    b: "str | None"

class Pair(NamedTuple):
    left: int
    right: int = 0

class Model(BaseModel):
    name: str
    size: int = Field(default=3, ge=0)
    parent: Optional[Point] = None

UserId = NewType("UserId", int)
T = TypeVar("T", bound=int)
Table = dict[str, list[Row]]
"""


async def read(code: str, main_function: str = "", version: str = "3.11") -> SourceReport:
    analysis = await SourceAnalyzer().analyze(
        code, main_function=main_function, python_version=version
    )
    for each in analysis.report.diagnostics:
        assert each.hint, each
        assert bool(each.line) == bool(each.column) or each.code == "SYNTAX_ERROR", each
    return analysis.report


def codes(report: SourceReport) -> list[str]:
    return [each.code for each in report.errors]


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        ("int", "int"),
        ("Optional[int]", "int | None"),
        ("Union[int, str, None]", "int | str | None"),
        ("t.Union[int, t.Optional[str]]", "int | str | None"),
        ("list[int] | None", "list[int] | None"),
        ("'list[UserId]'", "list[int]"),
        ("t.List[t.Dict[str, 't.Any']]", "list[dict[str, Any]]"),
        ("Sequence[int]", "list[int]"),
        ("Mapping[str, float]", "dict[str, float]"),
        ("tuple[int, ...]", "tuple[int, ...]"),
        ("t.Tuple[int, str]", "tuple[int, str]"),
        ("tuple[()]", "tuple[()]"),
        ("frozenset[UUID]", "frozenset[UUID]"),
        ("list", "list[Any]"),
        ("dict", "dict[Any, Any]"),
        ("object", "Any"),
        ("Literal['a', 1, True, None]", "Literal['a', 1, True, None]"),
        ("Annotated[int, 'positive']", "int"),
        ("dt.datetime", "datetime"),
        ("dt.timedelta", "timedelta"),
        ("Decimal", "Decimal"),
        ("Path", "Path"),
        ("bytes", "bytes"),
        ("Color", "Color"),
        ("Literal[Color.RED]", "Color"),
        ("Table", "dict[str, list[Row]]"),
        ("T", "int"),
        ("np.ndarray", "numpy.ndarray"),
        ("pd.DataFrame", "pandas.DataFrame"),
        ("collections.OrderedDict[str, int]", "dict[str, int]"),
        ("bytearray", "bytes"),
    ],
)
async def test_an_annotation_becomes_its_type(annotation: str, expected: str) -> None:
    report = await read(f"{PRELUDE}\ndef run(x: {annotation}) -> None: ...\n")
    assert report.function is not None
    assert expression(report.function.inputs[0].type) == expected
    assert codes(report) == []


async def test_a_star_import_of_typing_is_known_and_of_others_is_not() -> None:
    code = "from typing import *\nfrom decimal import *\ndef f(x: Optional[Decimal]) -> None: ..."
    report = await read(code)
    assert report.function is not None
    assert expression(report.function.inputs[0].type) == "Decimal | None"
    assert not report.diagnostics
    unsure = await read("from elsewhere import *\ndef f(x: Optional[int]) -> None: ...")
    assert [each.code for each in unsure.diagnostics] == ["TYPE_UNSURE"]


async def test_a_flag_has_combinations_and_its_one_member_has_none() -> None:
    code = """
import enum
from typing import Literal
class Mode(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()
class Odd(enum.IntFlag, boundary=enum.EJECT):
    A = 1
def f(x: Mode, y: Literal[Mode.READ], z: Odd) -> None: ...
"""
    function = (await read(code)).function
    assert function is not None
    mode, one, odd = (each.type for each in function.inputs)
    assert [check_value(mode, value) is None for value in (0, 1, 3, 4, -1, True)] == [
        *(True, True, True),
        *(False, False, False),
    ]
    assert [check_value(one, value) is None for value in (0, 1, 3)] == [False, True, False]
    assert verdict(one, mode).kind == VerdictKind.WIDENING
    assert verdict(mode, SCALARS["int"]).method == "enum_to_value"
    assert isinstance(odd, Named)


async def test_records_are_read_by_their_shape() -> None:
    code = f"{PRELUDE}\ndef run(p: Point, r: Row, n: Pair, m: Model, l: Level) -> Model: ..."
    function = (await read(code)).function
    assert function is not None
    shapes = {
        each.name: [
            (field.name, expression(field.type), field.required)
            for field in getattr(each.type, "fields", ())
        ]
        for each in function.inputs
    }
    assert shapes["p"] == [
        ("x", "float", True),
        ("y", "float", False),
        ("tags", "list[str]", False),
    ]
    assert shapes["r"] == [("a", "int", True), ("b", "str | None", False)]
    assert shapes["n"] == [("left", "int", True), ("right", "int", False)]
    assert shapes["m"] == [
        ("name", "str", True),
        ("size", "int", False),
        ("parent", "Point | None", False),
    ]
    assert getattr(function.inputs[4].type, "members", None) == (("LOW", 1), ("HIGH", 2))
    assert [each.name for each in function.outputs] == ["result"]


@pytest.mark.parametrize(
    ("returns", "outputs"),
    [
        ("Point", ["x", "y", "tags"]),
        ("Pair", ["left", "right"]),
        ("Row", ["result"]),  # a field that may be absent would leave an edge without its value
        ("Optional[Point]", ["result"]),
        ("None", ["result"]),
    ],
)
async def test_a_returned_record_gives_named_outputs(returns: str, outputs: list[str]) -> None:
    function = (await read(f"{PRELUDE}\ndef run() -> {returns}: ...")).function
    assert function is not None
    assert [each.name for each in function.outputs] == outputs


async def test_parameters_have_kinds_and_defaults() -> None:
    code = """
    import enum
    class Color(enum.Enum):
        RED = "red"
    LIMIT = 3
    async def run(a, /, b: int = -1, c: float = 1, *, d: Color = Color.RED, e: int = None,
                  f: int = LIMIT, g: list[int] = [1, 2], h: int = "x") -> int:
        '''What it does.'''
    """
    report = await read(textwrap.dedent(code))
    function = report.function
    assert function is not None
    assert (function.is_async, function.docstring) == (True, "What it does.")
    assert [
        (each.name, each.kind, each.required, each.default_json) for each in function.inputs
    ] == [
        ("a", "positional", True, None),
        ("b", "positional", False, "-1"),
        ("c", "positional", False, "1"),
        ("d", "keyword", False, '"red"'),
        ("e", "keyword", False, "null"),
        ("f", "keyword", False, None),
        ("g", "keyword", False, "[1, 2]"),
        ("h", "keyword", False, None),
    ]
    assert expression(function.inputs[4].type) == "int | None"
    assert {each.code for each in report.diagnostics} == {
        "ANNOTATION_MISSING",
        "DEFAULT_NOT_OF_TYPE",
    }


@pytest.mark.parametrize(
    ("main_function", "code"),
    [
        ("missing", "MAIN_FUNCTION_MISSING"),
        ("Klass", "MAIN_FUNCTION_NOT_A_FUNCTION"),
        ("anonymous", "MAIN_FUNCTION_NOT_A_FUNCTION"),
        ("a.b", "MAIN_FUNCTION_INVALID"),
        ("class", "MAIN_FUNCTION_INVALID"),
        ("__init__", "MAIN_FUNCTION_INVALID"),
        ("", "MAIN_FUNCTION_AMBIGUOUS"),
    ],
)
async def test_a_main_function_that_cannot_be_one_is_refused(main_function: str, code: str) -> None:
    """B35."""
    source = "class Klass: ...\nanonymous = lambda: 1\ndef one(): ...\ndef two(): ...\n"
    assert codes(await read(source, main_function)) == [code]


@pytest.mark.parametrize(
    ("source", "code", "line", "column"),
    [
        ("def f(:\n  pass", "SYNTAX_ERROR", 1, 7),
        ("x = 1\nreturn 2", "SYNTAX_ERROR", 2, 1),
        ("def f(*a): ...", "PARAMETER_VARIADIC", 1, 8),
        ("def f(**k): ...", "PARAMETER_VARIADIC", 1, 9),
        ("def f(é: Nowhere): ...", "TYPE_UNKNOWN", 1, 10),
        ("def f():\n  yield 1", "MAIN_FUNCTION_GENERATOR", 2, 3),
        ("from . import x\ndef f(): ...", "RELATIVE_IMPORT", 1, 1),
        ("def f(x: 1 + 2): ...", "TYPE_NOT_UNDERSTOOD", 1, 10),
        ("class A:\n  n: 'A'\ndef f(x: list[int, str]): ...", "TYPE_NOT_UNDERSTOOD", 3, 10),
        (
            "from dataclasses import dataclass\n@dataclass\nclass A:\n  n: 'A'\ndef f(x: A): ...",
            "TYPE_RECURSIVE",
            4,
            6,
        ),
        ("def f(x: " + "list[" * 70 + "int" + "]" * 70 + "): ...", "TYPE_TOO_DEEP", 1, 330),
    ],
)
async def test_a_fault_has_its_code_and_place(
    source: str, code: str, line: int, column: int
) -> None:
    """B31, B38."""
    first = (await read(source)).errors[0]
    assert (first.code, first.line, first.column) == (code, line, column)


@pytest.mark.parametrize(
    "alias", ["tuple[" + "int, " * 240 + "]", f"Literal[{', '.join(map(str, range(240)))}]"]
)
async def test_the_types_of_one_function_have_a_limit_in_all(alias: str) -> None:
    """A few kilobytes of source would else make a node of megabytes."""
    parameters = ",\n".join(f"  a{index}: X" for index in range(1_000))
    source = f"from typing import Literal\nX = {alias}\ndef f(\n{parameters}\n) -> int: ..."
    report = await read(source)
    assert [(each.code, each.line) for each in report.errors] == [("TYPE_TOO_LARGE", 45)]
    assert "10000 parts in all" in report.errors[0].message


async def test_defaults_that_cost_too_much_are_left_to_the_function() -> None:
    wide = " | ".join(f"tuple[Literal[{index}], int]" for index in range(100))
    source = f"""
from typing import Literal
def f(a: int = 1, b: list[{wide} | int] = [{"1," * 2_000}], c: int = 2) -> int: ...
"""
    report = await read(source)
    assert report.function is not None
    assert [(each.required, each.default_json) for each in report.function.inputs] == [
        (False, "1"),
        (False, None),
        (False, None),
    ]


BOMBS = {
    "parentheses": "(" * 100_000,
    "attributes": "a" + ".b" * 200_000,
    "additions": "x=" + "+".join(["1"] * 200_000),
    "negations": "x=" + "not " * 50_000 + "1",
    "branches": "if 1: pass\n" + "elif 1: pass\n" * 50_000,
    "forward reference": "def f(x: '" + "list[" * 5_000 + "]" * 5_000 + "'): ...",
    "doubling types": "from dataclasses import dataclass\n"
    + "".join(f"@dataclass\nclass C{i}:\n a: 'C{i + 1}'\n b: 'C{i + 1}'\n" for i in range(40))
    + "class C40: ...\ndef f(x: C0): ...",
}


@pytest.mark.parametrize("version", list(find_pythons()))
@pytest.mark.parametrize("bomb", list(BOMBS))
async def test_a_source_that_exhausts_the_parser_gives_a_diagnostic(
    bomb: str, version: str
) -> None:
    """B33: the child may die, the answer comes."""
    report = await read(BOMBS[bomb], version=version)
    assert report.errors


async def test_constants_are_not_computed() -> None:
    report = await read("x = 10**10**10\ny = 'a' * 10**12\ndef f() -> None: ...")
    assert codes(report) == []


@pytest.mark.skipif("3.12" not in find_pythons(), reason="needs Python 3.12")
async def test_the_nodes_own_grammar_decides() -> None:
    code = "type Table[T] = dict[str, T]\ndef f[T: int](x: T, y: Table[int]) -> None: ..."
    new = await read(code, version="3.12")
    assert new.function is not None
    assert [expression(each.type) for each in new.function.inputs] == ["int", "dict[str, int]"]
    assert codes(await read(code, version="3.11")) == ["SYNTAX_ERROR"]


GENERIC_ALIASES = """
type Pair[T] = tuple[T, T]
type Nested[T] = Pair[list[T]]
type Same[T] = T
type Bounded[T: (int, str)] = list[T]
type Loop[T] = list[Same[Loop[T]]]
type Names[*Ts] = tuple[*Ts]
"""
FILLED = {
    "Pair[int]": "tuple[int, int]",
    "Pair": "tuple[Any, Any]",
    "Nested[str]": "tuple[list[str], list[str]]",
    "Same[Same[bool]]": "bool",
    "Pair['Pair[int]']": "tuple[tuple[int, int], tuple[int, int]]",
    "Bounded[int] | None": "list[int] | None",
    "Bounded": "list[int | str]",
}


@pytest.mark.skipif("3.12" not in find_pythons(), reason="needs Python 3.12")
async def test_generic_aliases_take_what_stands_in_their_brackets() -> None:
    parameters = ", ".join(f"p{at}: {text}" for at, text in enumerate(FILLED))
    code = f"{GENERIC_ALIASES}\ndef f({parameters}) -> None: ..."
    found = await read(code, version="3.12")
    assert found.function is not None
    assert list(FILLED.values()) == [expression(each.type) for each in found.function.inputs]
    for wrong, code_of in (("Loop[int]", "TYPE_RECURSIVE"), ("Pair[" * 12 + "int" + "]" * 12, "")):
        said = await read(f"{GENERIC_ALIASES}\ndef f(x: {wrong}) -> None: ...", version="3.12")
        assert [code_of or "TYPE_TOO_LARGE"] == codes(said)


UNPACKED = "from typing import *\nTs = TypeVarTuple('Ts')\ndef f(x: {}) -> None: ..."


@pytest.mark.parametrize("text", ["tuple[*Ts]", "Tuple[int, Unpack[Ts]]"])
async def test_a_tuple_of_unpacked_types_takes_any(text: str) -> None:
    found = await read(UNPACKED.format(text))
    assert found.function is not None
    assert ["tuple[Any, ...]"] == [expression(each.type) for each in found.function.inputs]


GENERIC_CLASSES = """
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar, Union
from pydantic import BaseModel
K = TypeVar("K")
V = TypeVar("V", bound=int)
@dataclass
class Box(Generic[V]):
    value: V
    more: list[V]
class Pair(NamedTuple, Generic[K, V]):
    left: K
    right: "Box[V]"
class Page(BaseModel, Generic[K]):
    items: list[K]
    next: Union["Page[K]", None] = None
class Rows(BaseModel, Generic[K]):
    items: list[K]
class Apart(Generic[K]):
    pass
"""
FIELDS = {
    "Box[bool]": ["bool", "list[bool]"],
    "Box": ["int", "list[int]"],
    "'Box[int]'": ["int", "list[int]"],
    "Pair[str, bool]": ["str", "Box"],
    "Rows['Rows[int]']": ["list[Rows]"],
    "Rows[K]": ["list[Any]"],
}


@pytest.mark.parametrize("text", list(FIELDS))
async def test_generic_classes_take_what_stands_in_their_brackets(text: str) -> None:
    found = await read(f"{GENERIC_CLASSES}\ndef f(x: {text}) -> None: ...")
    assert found.function is not None
    (record,) = [each.type for each in found.function.inputs]
    assert isinstance(record, Record)
    assert FIELDS[text] == [expression(each.type) for each in record.fields]


async def test_a_generic_class_that_holds_itself_or_has_no_fields_is_told() -> None:
    for text, told in (("Page[int]", "TYPE_RECURSIVE"), ("Apart[int]", "TYPE_NOT_CARRIED")):
        found = await read(f"{GENERIC_CLASSES}\ndef f(x: {text}) -> None: ...")
        assert told in [each.code for each in found.diagnostics]


@pytest.mark.skipif("3.12" not in find_pythons(), reason="needs Python 3.12")
async def test_generic_classes_of_python_3_12_do_so_too() -> None:
    code = """
from dataclasses import dataclass
from typing import TypeAliasType
@dataclass
class Box[T: int]:
    value: T
Boxes = TypeAliasType("Boxes", list[Box[bool]])
def f(x: Box[bool], y: Boxes, z: Box) -> None: ...
"""
    found = await read(code, version="3.12")
    assert found.function is not None
    shown = [to_json(each.type) for each in found.function.inputs]
    fields = [(each.get("item") or each)["fields"][0]["type"]["t"] for each in shown]
    assert ["bool", "bool", "int"] == fields


COUNTED_ON = "class E(enum.Enum):\n  A = 5\n  B = 1\n  C: int = enum.auto()"
ENUMS = {
    "class E(str, enum.Enum):\n  A = enum.auto()\n  B = enum.auto()": {"A": "1", "B": "2"},
    "class E(str, enum.Enum):\n  A = 1\n  B = 'b'": {"A": "1", "B": "b"},
    "class E(int, enum.Enum):\n  A = '7'\n  B = True": {"A": 7, "B": 1},
    "class E(float, enum.Enum):\n  A = 1": {"A": 1.0},
    "class E(enum.StrEnum):\n  A = enum.auto()\n  B = 'bee'": {"A": "a", "B": "bee"},
    COUNTED_ON: {"A": 5, "B": 1, "C": 6},
    "class E(enum.Enum):\n  A = _B = 1\n  C = 1.0": {"A": 1, "_B": 1, "C": 1},
    "class E(enum.Flag):\n  A = enum.auto()\n  B = enum.auto()\n  C = enum.auto()": {
        "A": 1,
        "B": 2,
        "C": 4,
    },
    "E = enum.Flag('E', 'A B C')": {"A": 1, "B": 2, "C": 4},
    "E = enum.IntEnum('E', {'A': '3'})": {"A": 3},
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("source", list(ENUMS))
async def test_members_of_enums_have_the_values_that_python_gives_them(source: str) -> None:
    scope: dict[str, Any] = {}
    exec(f"import enum\n{source}", scope)  # the list above
    real = {name: member.value for name, member in scope["E"].__members__.items()}
    function = (await read(f"import enum\n{source}\ndef f(x: E): ...")).function
    assert function is not None
    found = dict(getattr(function.inputs[0].type, "members", ()))
    if source == COUNTED_ON:  # from the last value or the largest, as the Python of the node does
        assert {"A": 5, "B": 1, "C": found["C"]} == found
        assert found["C"] in (2, 6)
        return
    assert real == ENUMS[source]
    assert [(each, type(value), value) for each, value in found.items()] == [
        (each, type(value), value) for each, value in real.items()
    ]


@pytest.mark.parametrize(
    "body",
    [
        "A = (1, 2)",
        "A, B = 1, 2",
        "A = enum.auto()\n  def _generate_next_value_(n, s, c, v): return n",
        "A = 1\n  def __new__(cls, value): ...",
        "A = 'a'\n  B = enum.auto()",
        "A = 1\n  if A: B = 2",
        "_ignore_ = ['A']\n  A = 1\n  B = 2",
    ],
)
async def test_an_enum_whose_values_are_not_plain_to_see_is_opaque(body: str) -> None:
    report = await read(f"import enum\nclass E(enum.Enum):\n  {body}\ndef f(x: E): ...")
    assert report.function is not None
    assert report.function.inputs[0].type == Named("E")
    assert "TYPE_NOT_CARRIED" in {each.code for each in report.diagnostics}


async def test_only_decorated_bases_give_a_dataclass_fields() -> None:
    code = """
    from dataclasses import dataclass
    class Plain:
        lost: int
    @dataclass
    class Base(Plain):
        first: int
    @dataclass
    class Derived(Base):
        second: str
    def f(x: Derived) -> None: ...
    """
    function = (await read(textwrap.dedent(code))).function
    assert function is not None
    fields = getattr(function.inputs[0].type, "fields", ())
    assert [each.name for each in fields] == ["first", "second"]


@pytest.mark.parametrize("field", ["InitVar[int]", "InitVar[int] = 3", "'InitVar[int]'", "InitVar"])
async def test_a_dataclass_that_takes_more_than_it_gives_stays_within_a_node(field: str) -> None:
    code = f"""
    from dataclasses import InitVar, dataclass
    @dataclass
    class Base:
        scale: {field}
    @dataclass
    class Point(Base):
        x: int
    def f(x: Point) -> None: ...
    """
    report = await read(textwrap.dedent(code))
    assert report.function is not None
    assert report.function.inputs[0].type == Named("Point")
    assert [(each.code, each.line) for each in report.diagnostics] == [("TYPE_NOT_CARRIED", 9)]
    assert "InitVar" in report.diagnostics[0].hint


@pytest.mark.parametrize(
    "annotation",
    [
        "Optional[()]",
        "t.Union[()]",
        "Annotated[()]",
        "t.Final[()]",
        "Literal[()]",
        "t.Deque[()]",
        "collections.OrderedDict[()]",
        "collections.OrderedDict[int]",
        "list[()]",
        "dict[()]",
        "Optional[int, str]",
    ],
)
async def test_brackets_with_too_little_or_too_much_have_their_place(annotation: str) -> None:
    for written in (annotation, repr(annotation)):
        report = await read(f"{PRELUDE}\ndef run(x: {written}) -> None: ...\n")
        line = PRELUDE.count("\n") + 2
        assert [(each.code, each.line) for each in report.errors] == [("TYPE_NOT_UNDERSTOOD", line)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            """
            from typing import TYPE_CHECKING, overload
            if TYPE_CHECKING:
                @overload
                def f(x: int) -> int: ...
                @overload
                def f(x: str) -> str: ...
            def f(x: float) -> float: ...
            """,
            "float",
        ),
        (
            """
            import typing
            def f(x: float) -> float: ...
            if typing.TYPE_CHECKING:
                def f(x: int) -> int: ...
            """,
            "float",
        ),
        (
            """
            from typing import overload
            def f(x: float): ...
            @overload
            def f(x: int) -> int: ...
            """,
            "float",
        ),
        ("if 0:\n  M = int\nM = str\ndef f(x: M): ...", "str"),
        ("M = str\nif 1:\n  M = int\ndef f(x: M): ...", "int"),
        ("if 0:\n  M = int\nelse:\n  if 1:\n    M = str\n  M = bool\ndef f(x: M): ...", "bool"),
        (
            """
            from typing import TYPE_CHECKING
            if TYPE_CHECKING:
                from decimal import Decimal as M
            else:
                M = None
            def f(x: "M"): ...
            """,
            "Decimal",
        ),
        (
            "try:\n  from uuid import UUID as M\nexcept ImportError:\n  M = str\ndef f(x: M): ...",
            "UUID",
        ),
        ("with open('x') as file:\n  M = int\ndef f(x: M): ...", "int"),
        ("M = int\nfor M in (int, str): pass\ndef f(x: M): ...", "M"),
        ("M = int\n(M, *rest), y = 1, 2\ndef f(x: M): ...", "M"),
    ],
)
async def test_names_mean_what_they_mean_at_the_end_of_the_source(
    source: str, expected: str
) -> None:
    function = (await read(textwrap.dedent(source))).function
    assert function is not None
    assert expression(function.inputs[0].type) == expected


@pytest.mark.parametrize(
    "block",
    [
        "match 1:\n  case 1:\n    from uuid import UUID as M",
        "try:\n  from uuid import UUID as M\nexcept* ValueError:\n  M = str",
    ],
)
async def test_the_blocks_of_newer_grammars_are_read_too(block: str) -> None:
    function = (await read(f"{block}\ndef f(x: M): ...")).function
    assert function is not None
    assert expression(function.inputs[0].type) == "UUID"


async def test_an_overload_is_no_implementation() -> None:
    report = await read("import typing\n@typing.overload\ndef f(x: int) -> int: ...")
    assert codes(report) == ["MAIN_FUNCTION_MISSING"]


async def test_imports_are_told_apart() -> None:
    code = """
    import json, os.path, yaml
    from typing import TYPE_CHECKING
    if TYPE_CHECKING:
        import pandas
    try:
        import ujson
    except ImportError:
        ujson = None
    def f() -> None:
        import numpy
    """
    imports = (await read(textwrap.dedent(code))).imports
    assert {each.name for each in imports if not each.standard} == {"yaml", "ujson", "numpy"}
    assert {each.name for each in imports if each.guarded} == {"ujson"}


async def test_a_union_whose_members_the_wire_does_not_tell_apart_is_warned_of() -> None:
    """B40."""
    signature = "day: str | dt.date, n: int | None, of: Any"
    report = await read(f"{PRELUDE}\ndef run({signature}) -> list[str | bytes]: ...")
    assert report.function is not None
    found = [each for each in report.diagnostics if each.code == "UNION_AMBIGUOUS"]
    assert [each.severity for each in found] == ["warning", "warning"]
    assert "the type of day, str | date, what is written as date may be read as str" in (
        found[0].message
    )
    assert "what is returned, str | bytes" in found[1].message
    assert "declare one of them" in found[0].hint
