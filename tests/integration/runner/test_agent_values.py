"""Values in and out of user code, on every Python that is here."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from typing import Any

from services.runner.gateways.sandbox.port import Interpreter
from tests.integration.runner.conftest import ANY, INT, Start, load_header

# Runs on 3.9: no `X | Y` outside of annotations.
CLASSES = """
from __future__ import annotations
import collections, dataclasses, datetime, decimal, enum, typing, uuid

class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"

class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2

class Mixed(enum.Enum):
    ONE = 1
    TEXT = "x"
    OTHER_ONE = "1"

class Rights(enum.Flag):
    READ = 1
    WRITE = 2

@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.5

class Pair(typing.NamedTuple):
    left: str
    right: typing.Optional[int]

class Row(typing.TypedDict, total=False):
    id: int
    name: str

def main(value):
    global seen
    seen = type(value).__name__
    return value

def kind(value):
    return type(value).__name__

def evaluated(value):
    return eval(value)
"""

STR = {"t": "str"}
BYTES, DATE, DATETIME, DECIMAL = ({"t": name} for name in ("bytes", "date", "datetime", "decimal"))
FLOAT = {"t": "float"}
OPTIONAL_INT = {"t": "union", "any_of": [INT, {"t": "none"}]}
POINT = {
    "t": "record",
    "kind": "dataclass",
    "name": "Point",
    "fields": [
        {"name": "x", "type": INT, "required": True},
        {"name": "y", "type": FLOAT, "required": False},
    ],
}
PAIR = {
    "t": "record",
    "kind": "namedtuple",
    "name": "Pair",
    "fields": [
        {"name": "left", "type": STR, "required": True},
        {"name": "right", "type": OPTIONAL_INT, "required": True},
    ],
}
ROW = {
    "t": "record",
    "kind": "typeddict",
    "name": "Row",
    "fields": [
        {"name": "id", "type": INT, "required": False},
        {"name": "name", "type": STR, "required": False},
    ],
}
COLOR = {"t": "enum", "name": "Color", "base": "str", "members": {"RED": "red", "BLUE": "blue"}}
LEVEL = {"t": "enum", "name": "Level", "base": "int", "members": {"LOW": 1, "HIGH": 2}}
MIXED = {
    "t": "enum",
    "name": "Mixed",
    "base": "",
    "members": {"ONE": 1, "TEXT": "x", "OTHER_ONE": "1"},
}
RIGHTS = {"t": "enum", "name": "Rights", "base": "int", "members": {"READ": 1, "WRITE": 2}}
DIGITS = "7" * 4300


def union(*members: dict[str, Any]) -> dict[str, Any]:
    return {"t": "union", "any_of": list(members)}


def mapping(key: dict[str, Any]) -> dict[str, Any]:
    return {"t": "dict", "key": key, "value": INT}


def items(kind: str, item: dict[str, Any]) -> dict[str, Any]:
    return {"t": kind, "item": item}


# (type, JSON text in and out, the Python type that user code sees)
ROUND_TRIPS: list[tuple[dict[str, Any], str, str]] = [
    (INT, "9007199254740993", "int"),
    (INT, DIGITS, "int"),
    (INT, "-" + DIGITS, "int"),
    (FLOAT, "1e+16", "float"),
    (FLOAT, "-0.0", "float"),
    (FLOAT, "0.1", "float"),
    ({"t": "bool"}, "true", "bool"),
    (STR, '"tab\\t “quotes” 🙂 \\\\u0000"', "str"),
    ({"t": "none"}, "null", "NoneType"),
    ({"t": "bytes"}, '"AAEC/w=="', "bytes"),
    ({"t": "decimal"}, '"1.10"', "Decimal"),
    ({"t": "decimal"}, '"1E+3"', "Decimal"),
    ({"t": "uuid"}, '"00000000-0000-4000-8000-000000000001"', "UUID"),
    ({"t": "datetime"}, '"2024-02-29T12:30:15.123456+02:00"', "datetime"),
    ({"t": "datetime"}, '"2024-02-29T12:30:15"', "datetime"),
    ({"t": "date"}, '"2024-02-29"', "date"),
    ({"t": "time"}, '"12:30:15.500000"', "time"),
    ({"t": "timedelta"}, "90061", "timedelta"),
    ({"t": "timedelta"}, "1.5", "timedelta"),
    ({"t": "complex"}, "[0.5,-1.0]", "complex"),
    ({"t": "list", "item": INT}, "[1,2,3]", "list"),
    ({"t": "set", "item": INT}, "[1,2,10]", "set"),
    ({"t": "frozenset", "item": STR}, '["a","b"]', "frozenset"),
    ({"t": "tuple", "items": [INT, STR]}, '[1,"a"]', "tuple"),
    ({"t": "tuple", "item": INT}, "[]", "tuple"),
    ({"t": "dict", "key": STR, "value": FLOAT}, '{"a":0.5,"b":1.0}', "dict"),
    ({"t": "dict", "key": INT, "value": STR}, '{"-1":"a","20":"b"}', "dict"),
    ({"t": "dict", "key": {"t": "bool"}, "value": INT}, '{"true":1}', "dict"),
    ({"t": "dict", "key": {"t": "date"}, "value": INT}, '{"2024-02-29":1}', "dict"),
    (mapping({"t": "literal", "values": ["a", "b"]}), '{"a":1}', "dict"),
    (mapping({"t": "literal", "values": ["a", 1, None]}), '{"a":1,"1":2,"null":3}', "dict"),
    (mapping(union(INT, STR)), '{"a":1,"1":2}', "dict"),
    (mapping(union(STR, {"t": "none"})), '{"a":1}', "dict"),
    (mapping(union(DATE, DATETIME)), '{"2024-02-29":1,"2024-02-29T00:00:00":2}', "dict"),
    (mapping(union(COLOR, INT)), '{"red":1,"5":2}', "dict"),
    (mapping(MIXED), '{"x":1,"1":2}', "dict"),
    (mapping({"t": "tuple", "items": [INT, STR]}), '{"[1,\\"a\\"]":1}', "dict"),
    (OPTIONAL_INT, "null", "NoneType"),
    (OPTIONAL_INT, "5", "int"),
    ({"t": "union", "any_of": [FLOAT, INT]}, "5", "int"),
    ({"t": "union", "any_of": [FLOAT, INT]}, "5.0", "float"),
    ({"t": "literal", "values": ["a", 1, None]}, "1", "int"),
    (COLOR, '"blue"', "Color"),
    (LEVEL, "2", "Level"),
    (RIGHTS, "3", "Rights"),
    (union(DATETIME, DATE), '"2024-02-29"', "date"),
    (union(DATE, STR), '"2024-02-29"', "str"),
    (union(BYTES, STR), '"text"', "str"),
    (union({"t": "timedelta"}, FLOAT), "1.5", "float"),
    (union(items("set", INT), items("tuple", INT), items("list", INT)), "[1,1]", "list"),
    (union(FLOAT, {"t": "literal", "values": [1]}), "1", "int"),
    (DATETIME, '"1880-01-01T00:00:00+00:19:32"', "datetime"),
    (items("set", ANY), '[["a",1]]', "set"),
    (POINT, '{"x":1,"y":2.0}', "Point"),
    (PAIR, '{"left":"a","right":null}', "Pair"),
    (ROW, '{"id":1}', "dict"),
    ({"t": "list", "item": POINT}, '[{"x":1,"y":0.5}]', "list"),
    (ANY, '{"z":1,"a":[1.5,"x",null,true],"big":123456789012345678901234567890}', "dict"),
]


async def reload(box: Any, inputs: Any, outputs: Any, main: str = "main") -> None:
    reply = await box.sandbox.request(load_header(CLASSES, inputs, outputs, main))
    assert "loaded" == reply.header["op"], reply.header


async def test_every_type_round_trips_exactly_on_every_python(
    start: Start, interpreters: dict[str, Interpreter]
) -> None:
    """B61, and the texts of the wire form."""
    for python in interpreters.values():
        box = await start(CLASSES, inputs={"value": INT}, python=python)
        for kind, text, seen in ROUND_TRIPS:
            await reload(box, {"value": kind}, {"result": kind})
            reply = await box.call({"value": text})
            assert text == reply.body.decode(), (python.version, kind, reply.header)
            await reload(box, {"value": kind}, {"result": STR}, "kind")
            assert seen == await box.value(value=text), (python.version, kind)


# (type, what the function returns, the error's type, a part of its message)
SPOOFS: list[tuple[dict[str, Any], str, str, str]] = [
    (INT, "'5'", "type_error", "output 'result': expected int, got str"),
    (INT, "True", "type_error", "expected int, got bool"),
    (INT, "1.0", "type_error", "expected int, got float"),
    (FLOAT, "2**53 + 1", "type_error", "beyond 2**53"),
    (FLOAT, "float('nan')", "serialization_error", "NaN"),
    (ANY, "[1, {'a': float('inf')}]", "serialization_error", "output 'result'[1].a"),
    (INT, "10**4300", "serialization_error", "4300 digits"),
    (STR, "'a\\x00'", "serialization_error", "NUL"),
    (STR, "'\\ud800'", "serialization_error", "surrogate"),
    ({"t": "list", "item": INT}, "[1, 'x']", "type_error", "output 'result'[1]: expected int"),
    (ANY, "(x for x in [1])", "serialization_error", "generator"),
    (ANY, "open('/dev/null')", "serialization_error", "TextIOWrapper"),
    (ANY, "lambda: 1", "serialization_error", "function"),
    (ANY, "loop()", "serialization_error", "deeper than 64"),
    (ANY, "{1: 2}", "serialization_error", "keys are str"),
    (ANY, "Hostile()", "serialization_error", "Hostile cannot be carried"),
    ({"t": "named", "name": "pandas.DataFrame"}, "1", "", ""),
    (ANY, "deep(65)", "serialization_error", "deeper than 64"),
    ({"t": "tuple", "items": [INT, INT]}, "(1,)", "type_error", "a tuple of 2"),
    ({"t": "none"}, "1", "type_error", "expected None"),
]


async def test_what_is_returned_must_be_what_was_declared(start: Start) -> None:
    """B39, B40, B105, R25, R26."""
    header = (
        "class Hostile:\n"
        "    def __repr__(self): open('/tmp/ran', 'w'); return 'x'\n"
        "    def __reduce__(self): open('/tmp/ran', 'w'); return (int, ())\n"
        "def loop():\n    held = []\n    held.append(held)\n    return held\n"
        "def deep(n):\n    held = 1\n    for _ in range(n): held = [held]\n    return held\n"
    )
    for kind, expression, error_type, message in SPOOFS:
        if not error_type:
            continue
        box = await start(
            f"{header}def main():\n    return {expression}\n", outputs={"result": kind}
        )
        error = await box.error()
        assert error_type == error["type"], (expression, error)
        assert message in error["message"], (expression, error)


# (type, what the function returns, the text that leaves)
RETURNED: list[tuple[dict[str, Any], str, str]] = [
    (items("list", INT), "(1, 2)", "[1,2]"),
    (items("list", INT), "range(3)", "[0,1,2]"),
    (items("list", INT), "collections.deque([1])", "[1]"),
    (items("frozenset", INT), "{2, 1}", "[1,2]"),
    (items("set", INT), "frozenset([1])", "[1]"),
    (union(INT, {"t": "timedelta"}), "5", "5"),
    (union(DATE, STR), "'2024-02-29'", '"2024-02-29"'),
    (union(COLOR, {"t": "none"}), "Color.RED", '"red"'),
    (union(INT, FLOAT, {"t": "timedelta"}), "2.0", "2.0"),
    (union(PAIR, items("list", ANY)), "Pair('a', 1)", '{"left":"a","right":1}'),
]
# (type, what the function returns, a part of the message)
MISTAKEN: list[tuple[dict[str, Any], str, str]] = [
    (union(STR, BYTES), "b'abc'", "this bytes would be read back as str; declare one of them"),
    (union(DATE, STR), "datetime.date(2024, 2, 29)", "this date would be read back as str"),
    (union(STR, DECIMAL), "decimal.Decimal(1)", "this decimal would be read back as str"),
    (union(INT, {"t": "timedelta"}), "datetime.timedelta(0, 5)", "would be read back as int"),
    (union(items("list", INT), items("tuple", INT)), "(1,)", "this tuple would be read back"),
    (union(items("list", INT), items("set", INT)), "{1}", "this set would be read back as list"),
    (items("set", union(STR, BYTES)), "{'AAEC', b'\\0\\1\\2'}", "would be read back as str"),
    (union(COLOR, STR), "Color.RED", "this Color would be read back as str"),
    (union(LEVEL, INT), "Level.LOW", "this Level would be read back as int"),
    (mapping(union(INT, STR)), "{1: 1}", "this int would be read back as str"),
    (mapping(union(STR, {"t": "none"})), "{None: 1}", "this None would be read back as str"),
    (mapping({"t": "literal", "values": [1, "1"]}), "{1: 1}", "have the same text"),
    (mapping(MIXED), "{Mixed.ONE: 1}", "have the same text"),
    (mapping(ANY), "{1: 1}", "a key is int; without a declared type keys are str"),
    (mapping(ANY), "{True: 1}", "a key is bool"),
    (mapping(ANY), "{None: 1}", "a key is NoneType"),
    (DECIMAL, "decimal.Decimal('NaN')", "not finite"),
    (DECIMAL, "decimal.Decimal('-Infinity')", "not finite"),
    (DECIMAL, "decimal.Decimal('1E+1000000')", "an exponent of 6"),
]


async def test_what_leaves_a_node_is_what_is_read_back_or_an_error(
    start: Start, interpreters: dict[str, Interpreter]
) -> None:
    """B39, B40, B61."""
    for python in interpreters.values():
        box = await start(CLASSES, inputs={"value": STR}, python=python)
        for kind, expression, text in RETURNED:
            await reload(box, {"value": STR}, {"result": kind}, "evaluated")
            reply = await box.call({"value": json.dumps(expression)})
            assert text == reply.body.decode(), (python.version, expression, reply.header)
        for kind, expression, part in MISTAKEN:
            await reload(box, {"value": STR}, {"result": kind}, "evaluated")
            error = await box.error(value=json.dumps(expression))
            assert "serialization_error" == error["type"], (python.version, expression, error)
            assert part in error["message"], (python.version, expression, error)


async def test_inputs_that_are_not_of_their_type_are_refused_by_name(start: Start) -> None:
    """B40, B57."""
    for kind, text in (
        (INT, "true"),
        (INT, "1.0"),
        (INT, '"1"'),
        ({"t": "bool"}, "1"),
        (FLOAT, "9007199254740993"),
        (FLOAT, "NaN"),
        ({"t": "bytes"}, '"a"'),
        ({"t": "uuid"}, '"{00000000-0000-4000-8000-000000000001}"'),
        (POINT, '{"x":1,"z":2}'),
        (items("set", items("list", INT)), "[[1]]"),
        (items("set", FLOAT), "[1,1.0]"),
        (mapping(FLOAT), '{"1":1,"1.0":2}'),
        (mapping(INT), '{"0":1,"-0":2}'),
        (mapping(FLOAT), '{".5":1}'),
        (mapping(INT), '{" 1":1}'),
        (mapping({"t": "literal", "values": ["a"]}), '{"b":1}'),
        (mapping(items("list", INT)), '{"[1]":1}'),
        (DECIMAL, '"NaN"'),
        (DATETIME, '"2024-02-29"'),
        (RIGHTS, "4"),
    ):
        box = await start(CLASSES, inputs={"value": kind})
        error = await box.error(value=text)
        assert "type_error" == error["type"] or "NaN" in text, (kind, text, error)
        assert "'value'" in error["message"], error


# (method, text in, type of the parameter, text out)
CONVERSIONS = [
    ("int_to_float", "3", FLOAT, "3.0"),
    ("bool_to_int", "true", INT, "1"),
    ("int_to_str", "5", STR, '"5"'),
    ("float_to_str", "1e+16", STR, '"1e+16"'),
    ("bool_to_str", "true", STR, '"true"'),
    ("int_to_decimal", "5", {"t": "decimal"}, '"5"'),
    ("float_to_decimal", "0.1", {"t": "decimal"}, '"0.1"'),
    ("decimal_to_str", '"0.1"', STR, '"0.1"'),
    ("date_to_datetime", '"2024-02-29"', {"t": "datetime"}, '"2024-02-29T00:00:00"'),
    ("list_to_tuple", "[1]", {"t": "tuple", "item": INT}, "[1]"),
    ("record_to_dict", '{"x":1}', {"t": "dict", "key": STR, "value": INT}, '{"x":1}'),
    ("value_to_json", '{"x":[1,"é"]}', STR, '"{\\"x\\":[1,\\"é\\"]}"'),
    ("str_to_int", '" 5 "', INT, "5"),
    ("str_to_float", '"1.5"', FLOAT, "1.5"),
    ("str_to_bool", '"False"', {"t": "bool"}, "false"),
    ("str_to_decimal", '"1.50"', {"t": "decimal"}, '"1.50"'),
    ("str_to_datetime", '"2024-02-29T12:00:00Z"', {"t": "datetime"}, '"2024-02-29T12:00:00+00:00"'),
    ("str_to_date", '"2024-02-29"', {"t": "date"}, '"2024-02-29"'),
    (
        "str_to_uuid",
        '"00000000000040008000000000000001"',
        {"t": "uuid"},
        '"00000000-0000-4000-8000-000000000001"',
    ),
    ("float_to_int", "3.0", INT, "3"),
    ("list_to_set", "[1,1,2]", {"t": "set", "item": INT}, "[1,2]"),
    ("list_to_set", "[1,1.0,[2],[2.0]]", items("set", ANY), "[1,[2]]"),
    ("json_to_value", '"[1,2]"', ANY, "[1,2]"),
]
REFUSED = [
    ("int_to_float", "9007199254740993", FLOAT),
    ("float_to_int", "3.5", INT),
    ("str_to_int", '"x"', INT),
    ("str_to_float", '"nan"', FLOAT),
    ("str_to_bool", '"maybe"', {"t": "bool"}),
    ("str_to_date", '"2024-02-30"', {"t": "date"}),
    ("json_to_value", '"{"', ANY),
    ("json_to_value", '"NaN"', ANY),
    ("json_to_value", '"1e400"', ANY),
    ("json_to_value", '"{\\"a\\":1,\\"a\\":2}"', ANY),
    ("json_to_value", '"[\\"\\\\ud800\\"]"', ANY),
    ("json_to_value", '"\\"\\\\u0000\\""', ANY),
    ("no_such_method", "1", INT),
]


async def test_conversions_are_made_by_the_consumer_and_never_silently(
    start: Start, interpreters: dict[str, Interpreter]
) -> None:
    """B40: only what the edge names; what would lose is an error."""
    for python in (
        interpreters[min(interpreters, key=_minor)],
        interpreters[max(interpreters, key=_minor)],
    ):
        box = await start(CLASSES, inputs={"value": INT}, python=python)
        for method, text, kind, expected in CONVERSIONS:
            await reload(box, {"value": kind}, {"result": kind})
            reply = await box.call({"value": text}, conversions={"value": [method]})
            assert expected == reply.body.decode(), (method, python.version, reply.header)
        for method, text, kind in REFUSED:
            await reload(box, {"value": kind}, {"result": kind})
            reply = await box.call({"value": text}, conversions={"value": [method]})
            error = reply.header["error"]
            assert ("conversion_error", "value") == (error["type"], error["input"]), method


async def test_records_give_named_outputs(start: Start) -> None:
    for returned in ("Point(3, 1.5)", "{'x': 3, 'y': 1.5}"):
        box = await start(
            f"{CLASSES}\ndef main():\n    return {returned}\n", outputs={"x": INT, "y": FLOAT}
        )
        reply = await box.call()
        assert [["x", 1], ["y", 3]] == reply.header["outputs"]
        assert b"31.5" == reply.body
    box = await start("def main():\n    return {'x': 1}\n", outputs={"x": INT, "y": INT})
    assert "output 'y' is missing" in (await box.error())["message"]
    returned = "{'x': 1, 'y': 2, 'z': 3}"
    box = await start(f"def main():\n    return {returned}\n", outputs={"x": INT, "y": INT})
    assert "unknown field z" in (await box.error())["message"]


async def test_async_functions_keep_their_loop_between_calls(start: Start) -> None:
    box = await start(
        "import asyncio\n"
        "loops = set()\n"
        "async def main(x):\n"
        "    await asyncio.sleep(0)\n"
        "    loops.add(asyncio.get_running_loop())\n"
        "    return [x, len(loops)]\n",
        inputs={"x": INT},
    )
    assert [1, 1] == await box.value(x="1")
    assert [2, 1] == await box.value(x="2")


async def test_defaults_apply_where_no_value_comes(start: Start) -> None:
    box = await start(
        "def main(a, b=2, c=3):\n    return [a, b, c]\n", inputs={"a": INT, "b": INT, "c": INT}
    )
    assert [1, 2, 3] == await box.value(a="1")
    assert [1, 2, 9] == await box.value(a="1", c="9")
    assert "user_error" == (await box.error(b="1"))["type"]


async def test_positional_only_parameters_may_be_left_out_before_others(start: Start) -> None:
    plain = "def plain(a=1, b=2, /, c=3):\n    return [a, b, c]\n"
    wrapped = "import functools\n@functools.wraps(plain)\ndef main(*given, **named):\n"
    for main in ("main = plain\n", f"{wrapped}    return plain(*given, **named)\n"):
        box = await start(plain + main, inputs={"a": INT, "b": INT, "c": INT})
        assert [1, 5, 3] == await box.value(b="5")
        assert [1, 2, 5] == await box.value(c="5")
        assert [1, 2, 3] == await box.value()


async def test_an_error_shows_the_users_frames_alone(start: Start) -> None:
    box = await start(
        "import json\n"
        "def inner(text):\n"
        "    try:\n"
        "        return json.loads(text)\n"
        "    except ValueError as problem:\n"
        "        raise KeyError('outer') from problem\n"
        "def main(text):\n"
        "    return inner(text)\n",
        inputs={"text": STR},
    )
    error = await box.error(text='"{"')
    assert "user_error" == error["type"]
    assert "KeyError: 'outer'" == error["message"]
    assert "agent" not in error["traceback"]
    assert 'File "node.py", line 8, in main\n    return inner(text)' in error["traceback"]
    assert "direct cause" in error["traceback"]
    assert 1 == len(error["causes"])


async def test_code_that_cannot_be_loaded_says_why(start: Start) -> None:
    for code, kind, part in (
        ("def main(:\n", "user_error", "SyntaxError"),
        ("import no_such_package\ndef main(): pass\n", "dependency_error", "PEP 723"),
        ("x = 1 / 0\n", "user_error", "ZeroDivisionError"),
        ("def other(): pass\n", "user_error", "no function 'main'"),
    ):
        box = await start(code, load=False)
        reply = await box.sandbox.request(load_header(code))
        assert "failed" == reply.header["op"]
        assert kind == reply.header["error"]["type"]
        assert part in reply.header["error"]["message"]


async def test_outputs_have_a_size_limit(start: Start) -> None:
    """F28, R24."""
    box = await start("def main():\n    return 'x' * 2000\n")
    reply = await box.call(output_bytes_max=1000)
    assert "output_too_large" == reply.header["error"]["type"]


async def test_the_context_is_in_the_environment(start: Start) -> None:
    box = await start(
        "import os\n"
        "def main():\n"
        "    return {k: v for k, v in os.environ.items() if k.startswith('QFLOW_')}\n"
    )
    for attempt in ("1", "2"):
        context = {"QFLOW_RUN_ID": "r", "QFLOW_ATTEMPT": attempt}
        reply = await box.call(context=context)
        assert context == json.loads(reply.body)
        assert "" == reply.header["recycle"]


async def test_a_warm_call_takes_microseconds(start: Start) -> None:
    """Technique 3; beside what the start of a sandbox takes: how many they are, a bench tells."""
    began = time.perf_counter()
    box = await start(
        "def main(x):\n    return x + 1\n", inputs={"x": INT}, outputs={"result": INT}
    )
    start_s = time.perf_counter() - began
    for at in range(100):
        await box.call({"x": str(at)})
    taken = []
    for at in range(1000):
        began = time.perf_counter()
        await box.call({"x": str(at)})
        taken.append(time.perf_counter() - began)
        if at % 100 == 0:
            await asyncio.sleep(0)
    assert statistics.median(taken) < start_s / 20


def _minor(version: str) -> int:
    return int(version.split(".")[1])
