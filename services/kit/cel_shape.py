"""The shape of an expression, read from its text before it is compiled or evaluated.

The CEL library bounds neither time nor depth: nested macros are quadratic in their input, and `map`
and `filter` copy the list they build for each element. So the text is tokenized here, what cannot
be bounded is refused, and the cost of the rest is derived from its shape.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

EXPRESSION_BYTES_MAX: Final = 4_096
_DEPTH_MAX: Final = 24
_OPERATORS_MAX: Final = 200
# Each `+` may copy everything before it, so a chain is quadratic.
_PLUS_MAX: Final = 32
_ELEMENTS_MAX: Final = 256
_PATTERN_CHARS_MAX: Final = 200

_MACROS: Final = frozenset({"all", "exists", "exists_one", "existsOne", "filter", "map"})
_BUILDING_MACROS: Final = frozenset({"filter", "map"})
_METHODS: Final = frozenset(
    {
        *("contains", "endsWith", "matches", "size", "startsWith"),
        *("getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear", "getFullYear"),
        *("getHours", "getMilliseconds", "getMinutes", "getMonth", "getSeconds"),
    }
)
# None reads a clock: the same values always give the same result.
_FUNCTIONS: Final = frozenset(
    {"bytes", "double", "duration", "dyn", "has", "int", "size", "string", "timestamp", "uint"}
)
# Calls that never return a boolean.
_VALUED: Final = (
    (_FUNCTIONS - {"dyn", "has"})
    | _BUILDING_MACROS
    | {each for each in _METHODS if each.startswith("get")}
)
_WORDS: Final = frozenset({"true", "false", "null"})
_RESERVED: Final = frozenset(
    {
        *("as", "break", "const", "continue", "else", "for", "function", "if", "import", "let"),
        *("loop", "namespace", "package", "return", "var", "void", "while"),
    }
)
_OPENING: Final = {"(": ")", "[": "]", "{": "}"}
_ARITHMETIC: Final = frozenset({"+", "-", "*", "/", "%"})
_RELATIONS: Final = frozenset({"==", "!=", "<=", ">=", "<", ">", "&&", "||", "!", "in", "?"})
_BRANCHING: Final = frozenset({"&&", "||", "?"})
_TERNARY: Final = frozenset({"?", ":"})

# A counted repetition, or an escape that may encode its bracket.
_COUNTED: Final = re.compile(r"\{|\\[xuU0-7]")

_TOKEN: Final = re.compile(
    r"""
      (?P<space>[\ \t\r\n\f]+|//[^\n]*)
    | (?P<text>[rRbB]{0,2}(?:\"\"\"(?s:.*?)\"\"\"|'''(?s:.*?)'''
        |"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'))
    | (?P<number>0[xX][0-9a-fA-F]+[uU]?|[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?[uU]?)
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<operator>&&|\|\||==|!=|<=|>=|[-+*/%!<>?:.,()\[\]{}])
    """,
    re.VERBOSE,
)


class ExpressionError(ValueError):
    """An expression that cannot be used, or that failed; `position` counts characters from 1."""

    def __init__(self, message: str, position: int = 0, *, is_of_types: bool = False) -> None:
        super().__init__(f"character {position}: {message}" if position else message)
        self.message = message
        self.position = position
        self.is_of_types = is_of_types  # it fails for all values of these types


@dataclass(frozen=True, slots=True)
class Token:
    """One token; `place` counts characters from 0."""

    kind: str
    text: str
    place: int


@dataclass(slots=True)
class Macro:
    """A macro: the operations of each iteration, and the names from outside that it reads."""

    builds: bool
    variable: str
    operators: int = 0
    plus: int = 0
    outside: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Shape:
    """What is known from the text: the inputs of the cost, and the kind of value it can have."""

    names: frozenset[str]
    macros: tuple[Macro, ...]
    operators: int
    plus: int
    elements_max: int
    text_bytes: int
    name_alone: str | None
    is_relation: bool
    # Whether it contains no relation and ends in a sum, a list or a call that is never boolean.
    is_valued: bool
    is_branching: bool  # whether values decide which parts are evaluated
    ternary: tuple[str, str, str] | None  # the three parts of `condition ? a : b`, if it is one
    patterns: tuple[Token, ...]  # arguments of `matches`, as written
    zoned: tuple[Token, ...]  # getters of a time that are called with a time zone


def shape_of(text: str, names: frozenset[str]) -> Shape:
    """Parse the text; `ExpressionError` says what is out of bounds and where."""
    return _Reader(text, names).read()


def members_of(text: str, name: str) -> list[Token]:
    """Return the fields that a sound expression reads of a name: `x` of `input.x`.

    None where it asks with `has` which fields there are.
    """
    tokens = [Token("", "", 0), *_tokens(text), Token("", "", 0)]
    if any(each.kind == "name" and each.text == "has" for each in tokens):
        return []
    return [
        field
        for before, owner, dot, field, after in zip(*(tokens[n:] for n in range(5)), strict=False)
        if (owner.kind, owner.text, dot.text, field.kind) == ("name", name, ".", "name")
        and before.text != "."
        and after.text != "("
    ]


def _tokens(text: str) -> list[Token]:
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError as error:
        raise ExpressionError("a lone surrogate is in no text", error.start + 1) from None
    if size_bytes > EXPRESSION_BYTES_MAX:
        raise ExpressionError(f"an expression has at most {EXPRESSION_BYTES_MAX} bytes")
    tokens, place = [], 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise ExpressionError(f"{text[place]!r} is not expected here", place + 1)
        kind = match.lastgroup or ""
        if kind != "space":
            tokens.append(Token(kind, match.group(), place))
        place = match.end()
    if not tokens:
        raise ExpressionError("an expression is needed", 1)
    return tokens


@dataclass(slots=True)
class _Bracket:
    closing: str
    macro: Macro | None  # the macro whose body this bracket is
    commas: int = 0
    is_literal: bool = False
    is_valued: bool = False  # the brackets of a call that is never boolean


class _Reader:
    """One pass over the tokens with a stack of open brackets."""

    def __init__(self, text: str, names: frozenset[str]) -> None:
        self._text = text
        self._tokens = _tokens(text)
        self._known = names
        self._open: list[_Bracket] = []
        self._used: set[str] = set()
        self._macros: list[Macro] = []
        self._operators = 0
        self._plus = 0
        self._elements_max = 0
        self._is_relation = self._is_arithmetic = self._ends_valued = False
        self._is_branching = False
        self._patterns: list[Token] = []
        self._zoned: list[Token] = []
        self._marks: list[Token] = []  # each ? and : outside of brackets

    def read(self) -> Shape:
        for index, token in enumerate(self._tokens):
            if token.kind == "name" and token.text != "in":
                self._name(index, token)
            elif token.kind in ("operator", "name"):
                self._operator(index, token)
        if self._open:
            self._fail(f"{self._open[-1].closing!r} is missing at the end", self._tokens[-1])
        first, last = self._tokens[0], self._tokens[-1]
        ends_valued = self._ends_valued and last.text in _OPENING.values()
        is_alone = len(self._tokens) == 1 and first.text in self._known
        return Shape(
            names=frozenset(self._used),
            macros=tuple(self._macros),
            operators=self._operators,
            plus=self._plus,
            elements_max=self._elements_max,
            text_bytes=len(self._text.encode()),
            name_alone=first.text if is_alone else None,
            is_relation=self._is_relation,
            is_valued=self._is_arithmetic or ends_valued,
            is_branching=self._is_branching,
            ternary=self._ternary(),
            patterns=tuple(self._patterns),
            zoned=tuple(self._zoned),
        )

    def _fail(self, message: str, token: Token) -> None:
        raise ExpressionError(message, token.place + 1)

    def _text_at(self, index: int) -> str:
        return self._tokens[index].text if 0 <= index < len(self._tokens) else ""

    def _macro(self) -> Macro | None:
        return next((each.macro for each in reversed(self._open) if each.macro), None)

    def _name(self, index: int, token: Token) -> None:
        is_member = self._text_at(index - 1) == "." and self._tokens[index - 1].kind == "operator"
        if self._text_at(index + 1) == "(":
            self._call(index, token, is_method=is_member)
            return
        if is_member:
            return
        macro = self._macro()
        if token.text in _WORDS or (macro and token.text == macro.variable):
            return
        if token.text in _RESERVED:
            self._fail(f"{token.text!r} is a reserved word of CEL and names no value", token)
        if token.text not in self._known:
            known = ", ".join(sorted(self._known)[:20]) or "none"
            self._fail(f"{token.text!r} is not known here; known: {known}", token)
        self._used.add(token.text)
        if macro:
            macro.outside.add(token.text)

    def _call(self, index: int, token: Token, *, is_method: bool) -> None:
        self._count(token)
        if is_method and token.text in _MACROS:
            if self._macro():
                self._fail("a macro stands inside another; one level is allowed", token)
            return
        if token.text not in (_METHODS if is_method else _FUNCTIONS):
            what = "method" if is_method else "function"
            self._fail(f"there is no {what} {token.text!r}", token)
        if token.text == "matches":
            self._pattern(index, token)
        if token.text.startswith("get") and self._text_at(index + 2) != ")":
            self._zoned.append(token)

    def _pattern(self, index: int, token: Token) -> None:
        # A computed pattern, or one with counted repetitions, may take long to compile.
        pattern = self._tokens[index + 2] if index + 3 < len(self._tokens) else token
        if pattern.kind != "text" or self._text_at(index + 3) != ")":
            self._fail("matches() takes a pattern in quotes, nothing that is worked out", token)
        if len(pattern.text) > _PATTERN_CHARS_MAX or _COUNTED.search(pattern.text):
            limit = f"at most {_PATTERN_CHARS_MAX} characters and no counted repetition"
            self._fail(f"a pattern has {limit}", pattern)
        if self._macro():
            self._fail("matches() inside a macro would compile its pattern each turn", token)
        self._patterns.append(pattern)

    def _operator(self, index: int, token: Token) -> None:
        if token.text in _OPENING:
            self._opens(index, token)
        elif token.text in _OPENING.values():
            self._closes(token)
        elif token.text == ",":
            if self._open:
                self._open[-1].commas += 1
        elif token.text == ".":
            if not index or not self._ends_value(self._tokens[index - 1]):
                self._fail("'.' follows no value", token)
        else:
            self._count(token)
            self._is_branching |= token.text in _BRANCHING
            if not self._open:
                self._is_relation |= token.text in _RELATIONS
                self._is_arithmetic |= token.text in _ARITHMETIC
                if token.text in _TERNARY:
                    self._marks.append(token)

    def _ternary(self) -> tuple[str, str, str] | None:
        depth = 0
        for mark in self._marks:
            depth += 1 if mark.text == "?" else -1
            if not depth:
                first, second, text = self._marks[0].place, mark.place, self._text
                return text[:first], text[first + 1 : second], text[second + 1 :]
        return None

    def _count(self, token: Token) -> None:
        self._operators += 1
        if self._operators > _OPERATORS_MAX:
            self._fail(f"an expression has at most {_OPERATORS_MAX} operators and calls", token)
        macro = self._macro()
        if macro:
            macro.operators += 1
        if token.text == "+":
            self._plus += 1
            if self._plus > _PLUS_MAX:
                self._fail(f"an expression adds at most {_PLUS_MAX} times", token)
            if macro:
                macro.plus += 1

    def _opens(self, index: int, token: Token) -> None:
        if len(self._open) == _DEPTH_MAX:
            self._fail(f"brackets are nested at most {_DEPTH_MAX} deep", token)
        before = self._tokens[index - 1] if index else None
        is_call = before is not None and before.kind == "name" and before.text != "in"
        macro = None
        if is_call and before and before.text in _MACROS and self._text_at(index - 2) == ".":
            macro = Macro(before.text in _BUILDING_MACROS, self._text_at(index + 1))
            self._macros.append(macro)
        is_index = token.text == "[" and before is not None and self._ends_value(before)
        self._count(token)
        self._open.append(
            _Bracket(
                _OPENING[token.text],
                macro,
                is_literal=token.text != "(" and not is_index,
                is_valued=is_call and before is not None and before.text in _VALUED,
            )
        )

    def _ends_value(self, token: Token) -> bool:
        if token.kind == "name":
            return token.text != "in"
        return token.kind in ("text", "number") or token.text in _OPENING.values()

    def _closes(self, token: Token) -> None:
        if not self._open or self._open[-1].closing != token.text:
            self._fail(f"{token.text!r} closes nothing", token)
        bracket = self._open.pop()
        if not self._open:  # the last bracket decides the kind of value
            self._ends_valued = bracket.is_literal or bracket.is_valued
        if bracket.is_literal:
            if bracket.commas >= _ELEMENTS_MAX:
                self._fail(f"a list or object has at most {_ELEMENTS_MAX} elements", token)
            self._elements_max = max(self._elements_max, bracket.commas + 1)
