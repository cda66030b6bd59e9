"""Every parser of what callers write, fed with what nobody meant: an answer or its own refusal.

Pieces of what each reads are joined at random, which comes much further into a parser than random
letters do. QFLOW_TEST_FUZZ says how many texts each gets in place of two hundred.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qflow.types import TypeFormatError, ValueTextError, expression, from_text, parse_strict
from qflow.types.ambiguity import ambiguous
from qflow.types.codec import to_text

from services.kit.cel import ExpressionError, compile_expression
from services.kit.errors import InvalidArgument
from services.kit.filter.fields import FieldTable, compile_filter, text_field, time_field
from services.kit.filter.language import parse
from services.orchestrator.domain import timing
from services.registry.domain.document import DocumentError
from services.registry.domain.exchange_reading import read
from services.registry.domain.yaml_text import read_yaml
from services.registry.gateways.source_analyzer.analyze import analyze
from services.runner.domain.environments import RequirementError, plain_requirement

_COUNT = min(int(os.environ.get("QFLOW_TEST_FUZZ") or 200), 20_000)
# A text of a few hundred letters takes milliseconds; on a machine that is busy, more.
_TEXT_S = 5.0
_NOW = datetime(2026, 1, 1, tzinfo=UTC)

_SOURCE = [
    *("def main(", "x: int", ", ", ") -> int:\n", "    return x\n", "async ", "lambda: ", "=1"),
    *("class A(TypedDict):\n    a: int\n", "@dataclass\n", "import os\n", "from a import *\n"),
    *("from typing import Annotated, Literal, Optional, TypedDict\n", "Literal['a', 1]"),
    *("list[", "dict[str, ", "]", "int | None", "Optional[", '"', "'''", "#", "\n    ", "\t"),
    *("x: A = ", "*args", "**kwargs", "/, ", "\\", "(" * 40, "[" * 40, "\x00", "\ud800", "é", "💥"),
    *("if True:\n", "try:\n    import b\nexcept ImportError:\n    b = None\n", "type X = int\n"),
    *("# /// script\n# dependencies = ['a>1']\n# ///\n", "0x", "1e999", "9" * 40, "global main\n"),
]
_TYPE = [
    *('{"t":"', "int", "str", "list", "union", "tuple", "fields", "named", '"', '","of":', "}"),
    *('"of":[', "]", ",", '{"t":"int"}', '{"t":"list","of":', "null", "NaN", "1e999", "\\ud800"),
    *('"literal","values":[', "9" * 40, '"name":"a"', '"fields":[', "{" * 70, "[" * 70),
]
_FILTER = [
    "name",
    ":",
    "=",
    "!=",
    ">",
    "(",
    ")",
    " AND ",
    " OR ",
    "NOT ",
    '"',
    "*",
    "-",
    "a.b",
    "\\",
]
_CRON = ["*", "/", ",", "-", "?", "L", "W", "#", "0", "7", "59", "MON", "JAN", " ", "@daily", "99"]
_YAML = [
    *(
        "qflow: 1\n",
        "name: a\n",
        "nodes:\n",
        "  - ",
        "id: a\n",
        "    ",
        ": ",
        "&a ",
        "*a",
        "!!",
        "<<: ",
    ),
    *(
        "|\n",
        ">\n",
        "{",
        "}",
        "[",
        "]",
        "'",
        '"',
        "%YAML 1.2\n",
        "---\n",
        "...\n",
        "? ",
        "1e999",
        "\x85",
    ),
    *("connections:\n", "a.result -> b.x\n", "python: |\n", "!!python/object:os.system ", "~", "#"),
]
_CEL = [
    *("x", "rows", ".name", "[0]", "[", "]", "(", ")", " && ", " || ", "!", " in ", " ? ", " : "),
    *("size(", "rows.filter(r, ", "rows.map(r, ", "has(", "matches(", "duration('1s')", "{'a': 1}"),
    *(
        " + ",
        " - ",
        " / ",
        " % ",
        "0",
        "1.5",
        "1e999",
        "9" * 40,
        "'",
        '"',
        "b'\\xff'",
        "\\u",
        "true",
    ),
    *("null", "rows.exists(r, r > ", "type(", "-", "(" * 40, "[" * 40, ".", ",", "==", "<", "r"),
]
_REQUIREMENT = [
    *(
        "numpy",
        "==",
        ">=",
        "<",
        "~=",
        "===",
        "!=",
        "1.0",
        "1.*",
        "[extra]",
        "[",
        "]",
        ",",
        ";",
        " ",
    ),
    *(
        "python_version < '3'",
        "@ https://a/b.whl",
        "git+",
        "--index-url",
        "-r ",
        "file:",
        "../",
        "\n",
    ),
    *("1!1.0", "+local", "9" * 40, "#egg=a", "\x00", "é"),
]
_TABLE = FieldTable((text_field("name", "name"), time_field("create_time", "created_at")), "true")


def _source(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        told = analyze(text, "", None)  # type: ignore[no-untyped-call]  # for any Python
    assert told["function"] is not None or told["diagnostics"]


def _type(text: str) -> None:
    with contextlib.suppress(TypeFormatError):
        of = from_text(text)
        assert of == from_text(to_text(of))
        expression(of)
        ambiguous(of)


def _value(text: str) -> None:
    with contextlib.suppress(ValueTextError):
        parse_strict(text)


def _filter(text: str) -> None:
    with contextlib.suppress(InvalidArgument):
        if (found := parse(text)) is not None:
            compile_filter(found, _TABLE, first=1)


def _cron(text: str) -> None:
    asked = timing.Timing(times=timing.Cron(expression=text))
    with contextlib.suppress(InvalidArgument):
        timing.check(asked, field="timing", now=_NOW)


def _yaml(text: str) -> None:
    with contextlib.suppress(DocumentError):
        read(read_yaml(text))


def _cel(text: str) -> None:
    with contextlib.suppress(ExpressionError):
        compiled = compile_expression(text, {"x", "rows"})
        compiled.evaluate({"x": b"1", "rows": b'[1, "a", {"name": null}]'})


def _requirement(text: str) -> None:
    with contextlib.suppress(RequirementError):
        plain = plain_requirement(text)
        assert plain == plain_requirement(plain)


@pytest.mark.parametrize(
    ("reads", "pieces"),
    [
        (_source, _SOURCE),
        (_type, _TYPE),
        (_value, _TYPE),
        (_filter, _FILTER),
        (_cron, _CRON),
        (_yaml, _YAML),
        (_cel, _CEL),
        (_requirement, _REQUIREMENT),
    ],
    ids=["source", "type", "value", "filter", "cron", "yaml", "cel", "requirement"],
)
def test_a_parser_answers_or_refuses_whatever_it_is_given(
    reads: Callable[[str], None], pieces: list[str]
) -> None:
    """E17, E18, B31, B33, B38, B58, B59, B79: and does so in no time that anybody would notice."""

    @settings(
        max_examples=_COUNT,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        database=None,
    )
    @given(st.lists(st.sampled_from(pieces) | st.text(max_size=3), max_size=25).map("".join))
    def read_in_time(text: str) -> None:
        began = time.process_time()
        reads(text)
        assert time.process_time() - began < _TEXT_S

    read_in_time()
