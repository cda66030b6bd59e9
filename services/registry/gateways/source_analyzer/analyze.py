"""Read a node's source without running any of it: signature, types and imports.

One file, standard library only, any Python from 3.9 on; its `main` runs in a process of
the Python that the node asks for, so that its own grammar decides. Takes one JSON object
`{"code", "main_function", "version": [3, 12], "types": {name: form}}` on standard input, gives one
on standard output: `{"function": {...} | null, "imports": [...], "diagnostics": [...],
"unknown_types": [...], "custom_types": [...]}`. What comes in is hostile: this
process limits itself first, and whoever started it survives its death.
"""

# Written for Python 3.9 and without annotations, as the runner's agent is.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202, ANN204, B905, C901, D102, D103, D401, ERA001
# ruff: noqa: N818, PLR0911, PLR2004, PTH112, PTH118, PTH120, PTH208, RUF005
# ruff: noqa: SLF001

from __future__ import annotations

import ast
import base64
import importlib
import json
import keyword
import math
import os
import re
import resource
import sys

CPU_SECONDS = 5
ADDRESS_SPACE_BYTES = 1 << 30
RECURSION_LIMIT = 3_000
DEPTH_MAX = 64
PARTS_MAX = 1_000
PARTS_ALL_MAX = 10_000  # of all types of one function
PARAMETERS_MAX = 1_000
MEMBERS_MAX = 1_000
IMPORTS_MAX = 1_000
UNKNOWN_MAX = 100
DIAGNOSTICS_MAX = 100
DEFAULT_CHARS_MAX = 65_536
DOCSTRING_CHARS_MAX = 10_000
INTEGER_MAX = 2**63 - 1
ERROR, WARNING, INFO = "error", "warning", "info"
_NAME = re.compile(r"[^\W\d]\w*\Z")

# What typing and its relatives call the types that the structural form knows.
SCALARS = {
    "builtins.int": "int",
    "builtins.float": "float",
    "builtins.bool": "bool",
    "builtins.str": "str",
    "builtins.bytes": "bytes",
    "builtins.complex": "complex",
    "builtins.object": "any",
    "typing.Any": "any",
    "typing.AnyStr": "any",
    "typing.Text": "str",
    "typing.LiteralString": "str",
    "datetime.datetime": "datetime",
    "datetime.date": "date",
    "datetime.time": "time",
    "datetime.timedelta": "timedelta",
    "decimal.Decimal": "decimal",
    "uuid.UUID": "uuid",
    "pathlib.Path": "file",
    "pathlib.PurePath": "file",
    "pathlib.PosixPath": "file",
    "pathlib.PurePosixPath": "file",
    "os.PathLike": "file",
    "typing.BinaryIO": "file",
    "io.BufferedReader": "file",
    "io.BufferedIOBase": "file",
    "numpy.ndarray": "ndarray",
    "numpy.typing.NDArray": "ndarray",
    "pyarrow.Table": "arrow",
    "pandas.DataFrame": "pandas",
    "polars.DataFrame": "polars",
}
# Types of others whose parts in brackets say nothing of how their values travel.
OPAQUE_PARTS = {
    "os.PathLike": "file",
    "numpy.ndarray": "ndarray",
    "numpy.typing.NDArray": "ndarray",
}
LISTS = {
    "builtins.list",
    "typing.List",
    "typing.Sequence",
    "typing.MutableSequence",
    "typing.Iterable",
    "typing.Collection",
    "typing.Container",
    "typing.Reversible",
    "collections.abc.Sequence",
    "collections.abc.MutableSequence",
    "collections.abc.Iterable",
    "collections.abc.Collection",
    "collections.abc.Container",
    "collections.abc.Reversible",
}
SETS = {
    "builtins.set",
    "typing.Set",
    "typing.MutableSet",
    "collections.abc.MutableSet",
}
FROZENSETS = {
    "builtins.frozenset",
    "typing.FrozenSet",
    "typing.AbstractSet",
    "collections.abc.Set",
}
DICTS = {
    "builtins.dict",
    "typing.Dict",
    "typing.Mapping",
    "typing.MutableMapping",
    "collections.abc.Mapping",
    "collections.abc.MutableMapping",
}
TUPLES = {"builtins.tuple", "typing.Tuple"}
# Types whose values arrive as a plainer type: told, since their own methods will be missing.
APPROXIMATED = {
    "collections.OrderedDict": "dict",
    "collections.defaultdict": "dict",
    "typing.OrderedDict": "dict",
    "typing.DefaultDict": "dict",
    "collections.Counter": "counter",
    "typing.Counter": "counter",
    "collections.deque": "list",
    "typing.Deque": "list",
    "builtins.bytearray": "bytes",
    "builtins.memoryview": "bytes",
}
# What a star import binds is known of these: they come with Python and run nothing of a user's.
STAR_MODULES = (
    "typing",
    "datetime",
    "decimal",
    "dataclasses",
    "enum",
    "uuid",
    "pathlib",
    "collections",
    "collections.abc",
)
WRAPPERS = {
    "typing.Final",
    "typing.ClassVar",
    "typing.Required",
    "typing.NotRequired",
    "typing.ReadOnly",
    "dataclasses.InitVar",
}
NEVER_EMPTY = WRAPPERS | {
    "typing.Optional",
    "typing.Union",
    "typing.Annotated",
    "typing.Literal",
}
NOTHING = {"typing.NoReturn", "typing.Never"}
ENUM_BASES = {
    "enum.Enum": "",
    "enum.IntEnum": "int",
    "enum.StrEnum": "str",
    "enum.IntFlag": "int",
    "enum.Flag": "int",
}
ENUM_MIXINS = {"builtins.str": "str", "builtins.int": "int", "builtins.float": "float"}
PLAIN = (str, bool, int, float, type(None))
OTHER_MIXINS = {"builtins." + name for name in ("bytes", "complex", "tuple", "list", "dict")}
BUILTINS = set(dir(__builtins__) if not isinstance(__builtins__, dict) else __builtins__)
HARMLESS_DECORATORS = {
    "functools.cache",
    "functools.lru_cache",
    "typing.final",
    "typing.no_type_check",
}


class Refused(Exception):
    """The source cannot be used; the diagnostic says why."""

    def __init__(self, code, message, hint="", node=None):
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.node = node


class Report:
    """Diagnostics as they are found, with places that people count from 1."""

    def __init__(self, code):
        self.lines = code.splitlines()
        self.found = []

    def add(self, severity, code, message, hint="", node=None, line=0, column=0):
        if node is not None:
            line = getattr(node, "lineno", 0)
            column = self._column(line, getattr(node, "col_offset", -1))
        entry = {
            "severity": severity,
            "code": code,
            "message": message[:1000],
            "hint": hint[:1000],
            "line": max(0, line or 0),
            "column": max(0, column or 0),
        }
        if len(self.found) < DIAGNOSTICS_MAX and entry not in self.found:
            self.found.append(entry)

    def _column(self, line, offset):
        # The parser counts bytes of UTF-8; people count characters.
        if offset < 0 or not 0 < line <= len(self.lines):
            return 0
        head = self.lines[line - 1].encode("utf-8", "replace")[:offset]
        return len(head.decode("utf-8", "replace")) + 1


# ---------------------------------------------------------------- names of a module


class Scope:
    """What the names at the top of a module mean, as far as reading tells."""

    def __init__(self, tree):
        self.imports = {}  # name -> dotted name
        self.classes = {}
        self.functions = {}
        self.aliases = {}  # name -> expression
        self.parameters = {}  # name of a generic alias -> its type parameters
        self.others = set()
        self.star = False
        self.postponed = False  # `from __future__ import annotations`: Python evaluates none
        self.order = []  # top-level functions, in order
        self._read(tree.body)

    def _read(self, body):
        """In the order of the source, so that of two bindings of a name the later one counts."""
        stack = [(iter(body), True, False)]
        while stack:
            statements, top, typing_only = stack[-1]
            statement = next(statements, None)
            if statement is None:
                stack.pop()
                continue
            self._statement(statement, top, typing_only)
            for block, for_types in reversed(self._blocks(statement)):
                stack.append((iter(block), False, typing_only or for_types))

    def _blocks(self, statement):
        """The blocks of a statement, each with whether only type checkers enter it.

        Of alternatives, what is meant comes last: a handler stands in for what it guards.
        """
        if not isinstance(statement, _BLOCKS):
            return []
        body, orelse = getattr(statement, "body", []), getattr(statement, "orelse", [])
        if isinstance(statement, ast.If) and self.checks_types(statement.test):
            return [(orelse, False), (body, True)]
        cases = getattr(statement, "handlers", []) + getattr(statement, "cases", [])
        blocks = [each.body for each in cases]
        blocks += [body, orelse, getattr(statement, "finalbody", [])]
        return [(block, False) for block in blocks]

    def checks_types(self, test):
        return self.dotted(test) in ("typing.TYPE_CHECKING", "TYPE_CHECKING")

    def _statement(self, statement, top, typing_only):
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                self._bind(alias.asname or alias.name.split(".")[0])
                name = alias.name if alias.asname else alias.name.split(".")[0]
                self.imports[alias.asname or name] = name
        elif isinstance(statement, ast.ImportFrom):
            self._import_from(statement)
        elif isinstance(statement, ast.ClassDef):
            self._bind(statement.name)
            self.classes[statement.name] = statement
        elif isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            # What is said to type checkers alone is defined elsewhere for those who call it.
            if not typing_only and not any(map(self._is_overload, statement.decorator_list)):
                self._bind(statement.name)
                self.functions[statement.name] = statement
                if top:
                    self.order.append(statement.name)
        elif type(statement).__name__ == "TypeAlias":  # `type X = …`, from Python 3.12 on
            self._bind(statement.name.id)
            self.aliases[statement.name.id] = statement.value
            self.parameters[statement.name.id] = statement.type_params
        else:
            for target, value in _targets(statement):
                self._assign(target, value)

    def _import_from(self, statement):
        for alias in statement.names:
            if alias.name == "*":
                self._import_star(statement)
                continue
            self._bind(alias.asname or alias.name)
            module = "." * statement.level + (statement.module or "")
            if module == "__future__" and alias.name == "annotations":
                self.postponed = True
            self.imports[alias.asname or alias.name] = module + "." + alias.name

    def _import_star(self, statement):
        if statement.level or statement.module not in STAR_MODULES:
            self.star = True
            return
        module = importlib.import_module(statement.module)
        for name in getattr(module, "__all__", dir(module)):
            if not name.startswith("_"):
                self._bind(name)
                self.imports[name] = statement.module + "." + name

    def _is_overload(self, decorator):
        name = self.dotted(decorator)
        return name == "typing.overload" or (self.star and name == "overload")

    def _assign(self, target, value):
        if isinstance(target, ast.Name) and value is not None:
            self._bind(target.id)
            self.aliases[target.id] = value
            return
        for each in ast.walk(target):
            if isinstance(each, ast.Name) and not isinstance(each.ctx, ast.Load):
                self._bind(each.id)
                if isinstance(each.ctx, ast.Store):
                    self.others.add(each.id)

    def _bind(self, name):
        """A later binding of a name hides the earlier one."""
        for known in (self.imports, self.classes, self.functions, self.aliases):
            known.pop(name, None)
        self.others.discard(name)

    def has(self, name):
        return (
            name in self.imports
            or name in self.classes
            or name in self.functions
            or name in self.aliases
            or name in self.others
        )

    def dotted(self, node):
        """The dotted name that an expression means, or None: `t.List` with `import typing as t`."""
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return None
        head = node.id
        if head in self.imports:
            head = self.imports[head]
        elif not self.has(head) and head in BUILTINS:
            head = "builtins." + head
        name = ".".join([head] + parts[::-1])
        for relative in ("typing_extensions.", "t_extensions."):
            if name.startswith(relative) and not name.endswith(".Buffer"):
                name = "typing." + name[len(relative) :]
        return name


def _targets(statement):
    """What a statement binds or deletes, each with the expression it then means, if any."""
    if isinstance(statement, ast.Assign):
        return [(target, statement.value) for target in statement.targets]
    if isinstance(statement, ast.AnnAssign) and statement.value is not None:
        return [(statement.target, statement.value)]
    if isinstance(statement, (ast.For, ast.AsyncFor)):
        return [(statement.target, None)]
    if isinstance(statement, (ast.With, ast.AsyncWith)):
        return [(each.optional_vars, None) for each in statement.items if each.optional_vars]
    if isinstance(statement, ast.Delete):
        return [(target, None) for target in statement.targets]
    return []


_TRIES = tuple(getattr(ast, name) for name in ("Try", "TryStar") if hasattr(ast, name))
_BLOCKS = (ast.If, ast.With, ast.AsyncWith, ast.For, ast.AsyncFor, ast.While) + _TRIES
_BLOCKS += tuple(getattr(ast, name) for name in ("Match",) if hasattr(ast, name))


# ---------------------------------------------------------------- types


class Argument:
    """What is given for a type parameter, and what the names in it mean."""

    def __init__(self, node, variables, opened):
        self.node = node
        self.variables = variables
        self.open = opened


class Types:
    """Turns annotations into structural forms."""

    def __init__(self, scope, report, given=None):
        self.scope = scope
        self.report = report
        self.given = given or {}  # custom types by their names: structural forms
        self.used = []  # the ones that were needed
        self.unknown = []  # names that nothing in the source defines
        self.quoted = 0
        self.parts = 0
        self.parts_all = 0
        self.open = []  # classes and aliases being read: a name twice is a recursion
        self.variables = {}  # type parameters of the function (`def f[T]`)

    def of(self, node):
        """The form of one annotation; Refused where it has none."""
        self.parts = 0
        self.open = []
        if self.parts_all > PARTS_ALL_MAX:
            return {"t": "any"}  # refused already, with the type that went beyond it
        return self.read(node, 1)

    def _count_parts(self, count):
        """Bound the sum; the place is the annotation that goes beyond it, not an alias it names."""
        self.parts_all += count
        if self.parts_all > PARTS_ALL_MAX:
            raise Refused(
                "TYPE_TOO_LARGE",
                "the types of the function have more than %d parts in all" % PARTS_ALL_MAX,
                "use Any, or dict, for parts that need not be checked",
            )

    def read(self, node, depth):
        self._count_parts(1)
        self.parts += 1
        if self.parts > PARTS_MAX:
            raise Refused(
                "TYPE_TOO_LARGE",
                "the type has more than %d parts" % PARTS_MAX,
                "use Any, or dict, for the part that need not be checked",
                node,
            )
        if depth > DEPTH_MAX:
            raise Refused(
                "TYPE_TOO_DEEP", "the type is nested deeper than %d" % DEPTH_MAX, "", node
            )
        if isinstance(node, ast.Constant):
            return self._constant(node, depth)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return self._union(self._operands(node), depth)
        if isinstance(node, ast.Subscript):
            return self._subscript(node, depth)
        if isinstance(node, (ast.Name, ast.Attribute)):
            return self._name(node, depth)
        raise Refused(
            "TYPE_NOT_UNDERSTOOD",
            "this annotation is not a type",
            "write a type such as list[int], or Any",
            node,
        )

    def _constant(self, node, depth):
        if node.value is None:
            return {"t": "none"}
        if isinstance(node.value, str):
            self.quoted += 1
            try:
                return self.read(self._forward(node), depth)
            finally:
                self.quoted -= 1
        raise Refused("TYPE_NOT_UNDERSTOOD", "this annotation is not a type", "", node)

    def _forward(self, node):
        try:
            inner = ast.parse(node.value.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise Refused(
                "TYPE_NOT_UNDERSTOOD", "the text of this annotation is not a type", "", node
            ) from None
        for each in ast.walk(inner):  # places inside the text are those of the text
            if hasattr(each, "lineno"):
                each.lineno, each.col_offset = node.lineno, node.col_offset
        return inner

    def _operands(self, node):
        found = []
        while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            found.append(node.right)
            node = node.left
        return [node] + found[::-1]

    def _union(self, nodes, depth):
        members = []
        for node in nodes:
            form = self.read(node, depth + 1)
            for each in form["any_of"] if form["t"] == "union" else [form]:
                if each not in members:
                    members.append(each)
        return members[0] if len(members) == 1 else {"t": "union", "any_of": members}

    # -- names

    def _name(self, node, depth):
        name = self.scope.dotted(node)
        if name is None:
            raise Refused("TYPE_NOT_UNDERSTOOD", "this annotation is not a type", "", node)
        if isinstance(node, ast.Name) and node.id in self.variables:
            return self._variable(self.variables[node.id], depth)
        form = self._known(name, node)
        if form is not None:
            return form
        first, _, rest = name.partition(".")
        local = self._local(node, first, rest, depth)
        if local is not None:
            return local
        if "." not in name:
            custom = self._custom(name, node)
            if custom is not None:
                return custom
            if self.scope.star:
                self._warn_any(node, name)
                return {"t": "any"}
            if name in self.scope.others:
                return self._opaque(name, node)
            raise Refused(
                "TYPE_UNKNOWN",
                "the name %s is not defined" % name[:200],
                "import or define it, or write Any",
                node,
            )
        return self._opaque(name, node)

    def _custom(self, name, node):
        """A type that callers have defined; the source itself has no such name."""
        if name in self.scope.others:
            return None
        if name not in self.given:
            if name not in self.unknown and len(self.unknown) < UNKNOWN_MAX and len(name) <= 100:
                self.unknown.append(name)
            return None
        if not self.quoted and not self.scope.postponed:
            raise Refused(
                "CUSTOM_TYPE_NOT_QUOTED",
                "Python itself does not know the custom type %s" % name,
                'write it in quotes: "%s"' % name,
                node,
            )
        form = self.given[name]
        self._count_parts(_parts_of(form))
        if name not in self.used:
            self.used.append(name)
        return form

    def _known(self, name, node):
        if name in SCALARS:
            return {"t": SCALARS[name]}
        if name in LISTS:
            return {"t": "list", "item": {"t": "any"}}
        if name in SETS:
            return {"t": "set", "item": {"t": "any"}}
        if name in FROZENSETS:
            return {"t": "frozenset", "item": {"t": "any"}}
        if name in TUPLES:
            return {"t": "tuple", "item": {"t": "any"}}
        if name in DICTS:
            return {"t": "dict", "key": {"t": "any"}, "value": {"t": "any"}}
        if name in APPROXIMATED:
            return self._approximated(name, [{"t": "any"}, {"t": "any"}], node)
        if name in NOTHING:
            return {"t": "none"}
        if name in NEVER_EMPTY:
            raise Refused("TYPE_NOT_UNDERSTOOD", "%s needs a type in brackets" % name, "", node)
        return None

    def _approximated(self, name, arguments, node):
        kind = APPROXIMATED[name]
        self.report.add(
            WARNING,
            "TYPE_APPROXIMATED",
            "a value of %s is passed as a plain %s"
            % (name.rpartition(".")[2], "dict" if kind == "counter" else kind),
            "annotate the plain type",
            node,
        )
        if kind == "bytes":
            return {"t": "bytes"}
        if kind == "list":
            return {"t": "list", "item": arguments[0]}
        if kind == "counter":
            return {"t": "dict", "key": arguments[0], "value": {"t": "int"}}
        return {"t": "dict", "key": arguments[0], "value": arguments[-1]}

    def _opaque(self, name, node, hint="take and give plain values, records or files"):
        name = name.lstrip(".")
        if len(name) > 255:
            raise Refused("TYPE_NOT_UNDERSTOOD", "this name is too long for a type", "", node)
        self.report.add(
            WARNING,
            "TYPE_NOT_CARRIED",
            "values of %s stay within a node; they cannot pass an edge" % name,
            hint,
            node,
        )
        return {"t": "named", "name": name}

    def _warn_any(self, node, name):
        self.report.add(
            WARNING,
            "TYPE_UNSURE",
            "%s may come from a star import; it is read as Any" % name[:200],
            "import the name itself",
            node,
        )

    def _local(self, node, first, rest, depth):
        scope = self.scope
        if first in scope.classes:
            definition = scope.classes[first]
            full = first
            for part in filter(None, rest.split(".")):
                definition = next(
                    (
                        each
                        for each in definition.body
                        if isinstance(each, ast.ClassDef) and each.name == part
                    ),
                    None,
                )
                full += "." + part
                if definition is None:
                    return self._opaque(full, node)
            parameters = getattr(definition, "type_params", ())
            return self._opened(
                full, node, lambda: self._class(definition, full, node, depth), parameters
            )
        if first in scope.aliases and not rest:
            value = scope.aliases[first]
            parameters = scope.parameters.get(first, ())
            return self._opened(
                first, node, lambda: self._alias(first, value, node, depth), parameters
            )
        if first in scope.functions:
            raise Refused("TYPE_NOT_UNDERSTOOD", "%s is a function, not a type" % first, "", node)
        return None

    def _opened(self, name, node, read, parameters, given=None):
        if name in self.open:
            raise Refused(
                "TYPE_RECURSIVE",
                "the type %s holds itself" % name,
                "use Any, or dict, where it does",
                node,
            )
        self.open.append(name)
        outer = self.variables
        # Its own type parameters, not those of whoever names it.
        self.variables = given or {each.name: each for each in parameters}
        try:
            return read()
        finally:
            self.variables = outer
            self.open.pop()

    def _alias(self, name, value, node, depth):
        if isinstance(value, ast.Call):
            return self._called(name, value, node, depth)
        if isinstance(value, (ast.Name, ast.Attribute, ast.Subscript, ast.BinOp, ast.Constant)):
            return self.read(value, depth)
        return self._opaque(name, node)

    def _called(self, name, call, node, depth):
        """NewType, TypeVar, and the functional spellings of records and enums."""
        maker = self.scope.dotted(call.func)
        arguments = call.args
        if maker == "typing.NewType" and len(arguments) == 2:
            return self.read(arguments[1], depth)
        if maker == "typing.TypeVar":
            bound = [each.value for each in call.keywords if each.arg == "bound"]
            if bound:
                return self.read(bound[0], depth)
            return self._union(arguments[1:], depth) if len(arguments) > 2 else {"t": "any"}
        if maker == "typing.TypedDict" and len(arguments) == 2:
            return self._typed_dict_call(name, call, depth)
        if maker == "typing.NamedTuple" and len(arguments) == 2:
            pairs = arguments[1].elts if isinstance(arguments[1], (ast.List, ast.Tuple)) else []
            fields = [
                self._field(pair.elts[0].value, pair.elts[1], True, depth)
                for pair in pairs
                if isinstance(pair, (ast.Tuple, ast.List))
                and len(pair.elts) == 2
                and isinstance(pair.elts[0], ast.Constant)
            ]
            return {"t": "record", "kind": "namedtuple", "name": name, "fields": fields}
        if maker in ENUM_BASES and len(arguments) == 2:
            return self._enum_call(name, maker, call, node)
        return self._opaque(name, node)

    def _typed_dict_call(self, name, call, depth):
        shape = call.args[1]
        total = not any(
            each.arg == "total" and getattr(each.value, "value", True) is False
            for each in call.keywords
        )
        fields = []
        if isinstance(shape, ast.Dict):
            for key, value in zip(shape.keys, shape.values):
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    fields.append(self._typed_dict_field(key.value, value, total, depth))
        return {"t": "record", "kind": "typeddict", "name": name, "fields": fields}

    def _variable(self, parameter, depth):
        if isinstance(parameter, Argument):
            # Read where it is used, so that its parts and depth count there, by the names that
            # hold where it was written.
            inner = self.variables, self.open
            self.variables, self.open = parameter.variables, list(parameter.open)
            try:
                return self.read(parameter.node, depth)
            finally:
                self.variables, self.open = inner
        bound = getattr(parameter, "bound", None)
        if bound is None:
            return {"t": "any"}
        if isinstance(bound, ast.Tuple):
            return self._union(bound.elts, depth)
        return self.read(bound, depth)

    # -- subscripts

    def _subscript(self, node, depth):
        name = self.scope.dotted(node.value)
        if name is None:
            raise Refused("TYPE_NOT_UNDERSTOOD", "this annotation is not a type", "", node)
        inner, arguments = self._arguments(node, name)
        if name == "typing.Optional":
            self._count(name, arguments, 1, node)
            return self._union([arguments[0], ast.Constant(None)], depth)
        if name == "typing.Union":
            return self._union(arguments, depth)
        carried = self._carried(name, arguments)
        if carried is not None:
            return {"t": carried}
        if name == "typing.Annotated" or name in WRAPPERS:
            return self.read(arguments[0], depth)
        if name == "typing.Literal":
            return self._literal(arguments, depth)
        if name in TUPLES:
            return self._tuple(inner, arguments, depth)
        kind = self._known(name, node) if name not in APPROXIMATED else None
        if name in APPROXIMATED:
            self._count(name, arguments, 2 if APPROXIMATED[name] == "dict" else 1, node)
            return self._approximated(
                name, [self.read(each, depth + 1) for each in arguments], node
            )
        if kind is not None and kind["t"] in ("list", "set", "frozenset"):
            self._count(name, arguments, 1, node)
            return {"t": kind["t"], "item": self.read(arguments[0], depth + 1)}
        if kind is not None and kind["t"] == "dict":
            self._count(name, arguments, 2, node)
            key = self.read(arguments[0], depth + 1)
            return {"t": "dict", "key": key, "value": self.read(arguments[1], depth + 1)}
        if kind is not None:
            raise Refused("TYPE_NOT_UNDERSTOOD", "%s takes no types in brackets" % name, "", node)
        filled = self._filled(node, arguments, depth)
        return self._name(node.value, depth) if filled is None else filled

    def _filled(self, node, arguments, depth):
        """A generic alias (`type Pair[T] = …`) with its parameters given, or None."""
        alias = getattr(node.value, "id", "")
        parameters = self.scope.parameters.get(alias, ())
        if alias in self.variables or len(parameters) != len(arguments) or not parameters:
            return None
        if any(type(each).__name__ != "TypeVar" for each in parameters):
            return None
        given = [Argument(each, self.variables, list(self.open)) for each in arguments]
        value = self.scope.aliases[alias]
        return self._opened(
            alias,
            node,
            lambda: self._alias(alias, value, node, depth),
            parameters,
            dict(zip((each.name for each in parameters), given)),
        )

    def _carried(self, name, arguments):
        """The type of values that travel as files whatever stands in the brackets, or None."""
        if name == "typing.IO" and self.scope.dotted(arguments[0]) == "builtins.bytes":
            return "file"
        if name == "typing.Annotated" and any(
            isinstance(each, ast.Constant) and each.value == "pickle" for each in arguments[1:]
        ):
            return "pickle"
        return OPAQUE_PARTS.get(name)

    def _arguments(self, node, name):
        inner = node.slice
        if type(inner).__name__ == "Index":  # before Python 3.9's new syntax tree
            inner = inner.value
        arguments = inner.elts if isinstance(inner, ast.Tuple) else [inner]
        if not arguments and name in NEVER_EMPTY:
            raise Refused("TYPE_NOT_UNDERSTOOD", "%s needs a type in brackets" % name, "", node)
        return inner, arguments

    def _count(self, name, arguments, wanted, node):
        if len(arguments) != wanted:
            raise Refused(
                "TYPE_NOT_UNDERSTOOD",
                "%s takes %d in brackets, not %d"
                % (name.rpartition(".")[2], wanted, len(arguments)),
                "",
                node,
            )

    def _tuple(self, inner, arguments, depth):
        if isinstance(inner, ast.Tuple) and not arguments:
            return {"t": "tuple", "items": []}
        last = arguments[-1]
        if len(arguments) == 2 and isinstance(last, ast.Constant) and last.value is Ellipsis:
            return {"t": "tuple", "item": self.read(arguments[0], depth + 1)}
        return {"t": "tuple", "items": [self.read(each, depth + 1) for each in arguments]}

    def _literal(self, arguments, depth):
        self._count_parts(len(arguments))
        values, others = [], []
        for each in arguments:
            if (
                isinstance(each, ast.Subscript)
                and self.scope.dotted(each.value) == "typing.Literal"
            ):
                others.append(self.read(each, depth + 1))
                continue
            if isinstance(each, ast.Attribute):
                others.append(self._literal_member(each, depth))
                continue
            value = _plain(each)
            if isinstance(value, bytes):
                others.append({"t": "bytes"})
            elif value is None or isinstance(value, (str, bool, int)):
                values.append(_storable(value, each))
            else:
                raise Refused(
                    "TYPE_NOT_UNDERSTOOD",
                    "a literal is text, an integer, True, False, None or an enum's member",
                    "",
                    each,
                )
        unique = {(type(value), value): value for value in values}
        forms = [{"t": "literal", "values": list(unique.values())}] if values else []
        merged = []
        for form in forms + others:
            if form not in merged:
                merged.append(form)
        return merged[0] if len(merged) == 1 else {"t": "union", "any_of": merged}

    def _literal_member(self, node, depth):
        form = self.read(node.value, depth + 1)
        if form["t"] != "enum" or node.attr not in form["members"]:
            raise Refused("TYPE_NOT_UNDERSTOOD", "this is not a member of an enum", "", node)
        base = "int" if form["base"] == "flag" else form["base"]  # the one value, no combinations
        return dict(form, base=base, members={node.attr: form["members"][node.attr]})

    # -- classes

    def _class(self, definition, name, node, depth):
        bases = self._bases(definition)
        if bases & set(ENUM_BASES):
            return self._enum(definition, name, bases, node)
        kind = self._record_kind(definition, bases)
        if kind is None:
            return self._opaque(name, node)
        if len(name) > 255:
            raise Refused("TYPE_NOT_UNDERSTOOD", "this name is too long for a type", "", node)
        lineage = self._lineage(definition)
        if kind == "dataclass":
            lineage = [each for each in lineage if self._is_dataclass(each)]
            if any(map(self._has_init_var, lineage)):
                # It is taken by the constructor and never given back by the object.
                return self._opaque(name, node, "make its InitVar a field, or pass plain values")
        fields = {}
        for each in lineage:
            for field in self._fields(each, kind, depth):
                fields[field["name"]] = field
        return {"t": "record", "kind": kind, "name": name, "fields": list(fields.values())}

    def _base_nodes(self, definition):
        for base in definition.bases:
            yield base.value if isinstance(base, ast.Subscript) else base

    def _bases(self, definition):
        """Dotted names of all bases, with those of bases in the same module."""
        found, stack, seen = set(), [definition], set()
        while stack:
            for base in self._base_nodes(stack.pop()):
                name = self.scope.dotted(base)
                if name is None or name in seen:
                    continue
                seen.add(name)
                found.add(name)
                if name in self.scope.classes:
                    stack.append(self.scope.classes[name])
        return found

    def _lineage(self, definition):
        """The class after its bases of the same module, so that its own fields win."""
        ordered, stack, seen = [], [definition], set()
        while stack and len(ordered) < 100:
            here = stack.pop()
            if id(here) in seen:
                continue
            seen.add(id(here))
            ordered.append(here)
            for base in self._base_nodes(here):
                name = self.scope.dotted(base)
                if name in self.scope.classes:
                    stack.append(self.scope.classes[name])
        return ordered[::-1]

    def _record_kind(self, definition, bases):
        if "typing.TypedDict" in bases:
            return "typeddict"
        if "typing.NamedTuple" in bases:
            return "namedtuple"
        if bases & {"pydantic.BaseModel", "pydantic.main.BaseModel", "pydantic.v1.BaseModel"}:
            return "pydantic"
        return "dataclass" if self._is_dataclass(definition) else None

    def _is_dataclass(self, definition):
        for decorator in definition.decorator_list:
            target = decorator.func if isinstance(decorator, ast.Call) else decorator
            if self.scope.dotted(target) in (
                "dataclasses.dataclass",
                "pydantic.dataclasses.dataclass",
            ):
                return True
        return False

    def _has_init_var(self, definition):
        return any(
            isinstance(each, ast.AnnAssign)
            and self._outermost(each.annotation) == "dataclasses.InitVar"
            for each in definition.body
        )

    def _outermost(self, annotation):
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = self._forward(annotation)
        return self.scope.dotted(
            annotation.value if isinstance(annotation, ast.Subscript) else annotation
        )

    def _fields(self, definition, kind, depth):
        total = not any(
            each.arg == "total" and getattr(each.value, "value", True) is False
            for each in definition.keywords
        )
        for statement in definition.body:
            if not isinstance(statement, ast.AnnAssign):
                continue
            if not isinstance(statement.target, ast.Name):
                continue
            name, annotation = statement.target.id, statement.annotation
            if self._outermost(annotation) in ("typing.ClassVar", "dataclasses.KW_ONLY"):
                continue
            if kind == "pydantic" and (name.startswith("_") or name == "model_config"):
                continue
            if kind == "typeddict":
                yield self._typed_dict_field(name, annotation, total, depth)
                continue
            has_default = statement.value is not None
            if isinstance(statement.value, ast.Call):
                made = self._field_call(statement.value)
                if made is None:
                    continue
                has_default = made
            yield self._field(name, annotation, not has_default, depth)

    def _field_call(self, call):
        """Whether `field(…)` or `Field(…)` gives a default; None where the field is no argument."""
        name = self.scope.dotted(call.func) or ""
        if name not in ("dataclasses.field", "pydantic.Field", "pydantic.fields.Field"):
            return True
        given = {each.arg: each.value for each in call.keywords}
        if getattr(given.get("init"), "value", True) is False:
            return None
        if call.args and name != "dataclasses.field":
            first = call.args[0]
            return not (isinstance(first, ast.Constant) and first.value is Ellipsis)
        default = given.get("default")
        if isinstance(default, ast.Constant) and default.value is Ellipsis:
            return False
        return "default" in given or "default_factory" in given

    def _field(self, name, annotation, required, depth):
        if not isinstance(name, str) or not _NAME.match(name) or len(name) > 255:
            raise Refused("TYPE_NOT_UNDERSTOOD", "a field's name is no identifier", "", annotation)
        return {"name": name, "type": self.read(annotation, depth + 1), "required": required}

    def _typed_dict_field(self, name, annotation, total, depth):
        required = total
        node = annotation
        while isinstance(node, ast.Subscript):
            outer = self.scope.dotted(node.value)
            if outer == "typing.Required":
                required = True
            elif outer == "typing.NotRequired":
                required = False
            elif outer not in ("typing.ReadOnly", "typing.Annotated"):
                break
            node = node.slice
            if type(node).__name__ == "Index":
                node = node.value
            if isinstance(node, ast.Tuple) and node.elts:
                node = node.elts[0]
        return self._field(name, annotation, required, depth)

    def _enum(self, definition, name, bases, node):
        lineage = self._lineage(definition)
        members = Members(bases, _defines(lineage, "_generate_next_value_"))
        kept = any(each.arg == "boundary" for here in lineage for each in here.keywords)
        if kept or _defines(lineage, "__new__") or bases & OTHER_MIXINS:
            return self._opaque(name, node)  # its values are whatever that makes of them
        for statement in definition.body:
            if isinstance(statement, _BLOCKS):
                return self._opaque(name, node)
            for target, value in _targets(statement):
                if not self._add_member(members, target, value):
                    return self._opaque(name, node)
        return self._enum_form(name, members, node)

    def _add_member(self, members, target, value):
        """Whether the assignment could be read; one that makes no member is left alone."""
        if not isinstance(target, ast.Name) or target.id == "_ignore_":
            return False
        if target.id[0] == target.id[-1] == "_":
            return True
        if target.id.startswith("__"):
            return False  # a member of another name before Python 3.11, and none since
        if isinstance(value, ast.Call) and self.scope.dotted(value.func) == "enum.auto":
            return members.number(target.id)
        return members.add(target.id, _plain(value))

    def _enum_call(self, name, base, call, node):
        members, plain = Members({base}, False), _plain(call.args[1])
        if isinstance(plain, str):
            plain = plain.replace(",", " ").split()
        sound = not call.keywords and isinstance(plain, (list, tuple, dict))
        for each in plain if sound else ():
            sound = sound and isinstance(each, str)
            if sound:
                numbered = not isinstance(plain, dict)
                sound = members.number(each) if numbered else members.add(each, plain[each])
        return self._enum_form(name, members, node) if sound else self._opaque(name, node)

    def _enum_form(self, name, members, node):
        found, base = members.found, members.base
        if not found or len(name) > 255:
            return self._opaque(name, node)
        self._count_parts(len(found))
        if members.flags and all(value >= 0 for value in found.values()):
            base = "flag"
        if not base:
            kinds = {type(value).__name__ for value in found.values()}
            base = kinds.pop() if len(kinds) == 1 else "object"
        return {"t": "enum", "name": name, "base": base, "members": found}


class Members:
    """The members of an enum, numbered and converted as Python does it."""

    def __init__(self, bases, own_numbers):
        base = next((ENUM_BASES[each] for each in sorted(bases) if ENUM_BASES.get(each)), "")
        mixins = [ENUM_MIXINS[each] for each in sorted(bases & set(ENUM_MIXINS))]
        self.base = base or (mixins[0] if mixins else "")
        self.flags = bool(bases & {"enum.Flag", "enum.IntFlag"})
        self.texts = "enum.StrEnum" in bases
        self.own_numbers = own_numbers
        self.written = []  # the values before the base makes them its own: these are counted on
        self.found = {}
        self.first = {}

    def number(self, name):
        """Add what `auto()` stands for; whether that is known."""
        if self.own_numbers:
            return False
        if self.texts:
            return self.add(name, name.lower())
        if not all(isinstance(each, (int, float)) for each in self.written):
            return False
        return self.add(name, self._next())

    def _next(self):
        # From the last value or the largest, as this very Python does: 3.11.2 and 3.11.7 differ.
        import enum

        numbered = enum.Flag if self.flags else enum.Enum
        return numbered._generate_next_value_("", 1, len(self.written), self.written[:])

    def add(self, name, value):
        """Add a value as it is written; whether its member has one that is known."""
        wanted = (int,) if self.flags else (str,) if self.texts else PLAIN
        convert = {"str": str, "int": int, "float": float}.get(self.base)
        # Of a number written as text: to read a long one takes the square of its length.
        too_long = convert in (int, float) and isinstance(value, str) and len(value) > 100
        if too_long or type(value) not in wanted or len(self.found) == MEMBERS_MAX:
            return False
        self.written.append(value)
        try:
            made = _storable(convert(value) if convert else value, None)
            # Equal values are one member, which has the value of the first: `1`, not `1.0`.
            self.found[name] = self.first.setdefault(made, made)
        except (ValueError, TypeError, OverflowError, Refused):
            return False
        return True


def _defines(classes, name):
    return any(getattr(each, "name", "") == name for here in classes for each in here.body)


_UNKNOWN = object()


def _plain(node):
    """The value of a literal expression; `_UNKNOWN` where it is none."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, OverflowError):
        return _UNKNOWN


def _storable(value, node):
    if isinstance(value, int) and abs(value) > INTEGER_MAX:
        raise Refused("LITERAL_TOO_LARGE", "the integer has more than 64 bits", "", node)
    if isinstance(value, float) and not math.isfinite(value):
        raise Refused("LITERAL_TOO_LARGE", "the number is not finite", "", node)
    if isinstance(value, str) and ("\0" in value or _has_surrogate(value)):
        raise Refused("LITERAL_NOT_TEXT", "the text cannot be stored as JSON", "", node)
    return value


def _has_surrogate(text):
    return any(0xD800 <= ord(each) <= 0xDFFF for each in text)


def _parts_of(form):
    """How many types a structural form consists of; it was bounded when it was stored."""
    count, stack = 0, [form]
    while stack:
        here = stack.pop()
        if isinstance(here, dict):
            count += "t" in here
            stack.extend(here.values())
        elif isinstance(here, list):
            stack.extend(here)
    return count


# ---------------------------------------------------------------- the main function


def find_main(scope, wanted):
    """The function that a run calls: the named one, or the only public one."""
    if wanted:
        return _named_main(scope, wanted)
    public = []
    for name in scope.order:
        if name in scope.functions and not name.startswith("_") and name not in public:
            public.append(name)
    if not public:
        raise Refused(
            "MAIN_FUNCTION_MISSING",
            "the source defines no public function at its top level",
            "define one: def run(x: int) -> int: …",
        )
    if len(public) > 1:
        raise Refused(
            "MAIN_FUNCTION_AMBIGUOUS",
            "the source defines %d public functions" % len(public),
            "set main_function to one of: %s" % ", ".join(public[:20]),
            scope.functions[public[1]],
        )
    return scope.functions[public[0]]


def _named_main(scope, wanted):
    dunder = wanted.startswith("__") and wanted.endswith("__")
    if not _NAME.match(wanted) or keyword.iskeyword(wanted) or dunder:
        raise Refused(
            "MAIN_FUNCTION_INVALID",
            "main_function must be the plain name of a function",
            "no dots, keywords or double underscores",
        )
    if wanted in scope.functions:
        return scope.functions[wanted]
    if scope.has(wanted):
        found = scope.classes.get(wanted) or scope.aliases.get(wanted)
        kind = "a class" if wanted in scope.classes else "not defined by def"
        if isinstance(found, ast.Lambda):
            kind = "a lambda"
        raise Refused(
            "MAIN_FUNCTION_NOT_A_FUNCTION",
            "%s is %s" % (wanted, kind),
            "name a function that is defined with def or async def at the top level",
            found,
        )
    names = [name for name in scope.order if name in scope.functions]
    raise Refused(
        "MAIN_FUNCTION_MISSING",
        "the source defines no function %s" % wanted[:200],
        "it defines: %s" % ", ".join(names[:20]) if names else "",
    )


def read_function(function, types, report):
    """Signature, defaults, docstring and outputs of the main function."""
    _check_body(function, report)
    types.variables = {
        each.name: each for each in getattr(function, "type_params", ()) if hasattr(each, "name")
    }
    _check_decorators(function, types.scope, report)
    return {
        "name": function.name,
        "is_async": isinstance(function, ast.AsyncFunctionDef),
        "docstring": (ast.get_docstring(function) or "")[:DOCSTRING_CHARS_MAX],
        "line": function.lineno,
        "parameters": _parameters(function, types, report),
        "returns": _returns(function, types, report),
    }


def _check_decorators(function, scope, report):
    for decorator in function.decorator_list:
        target = decorator.func if isinstance(decorator, ast.Call) else decorator
        if scope.dotted(target) not in HARMLESS_DECORATORS:
            report.add(
                WARNING,
                "DECORATED",
                "a decorator may change what the function takes and gives",
                "the signature below it is believed",
                decorator,
            )


def _check_body(function, report):
    """A generator gives no value that could be carried; say so before a run does."""
    stack = list(function.body)
    while stack:
        here = stack.pop()
        if isinstance(here, (ast.Yield, ast.YieldFrom)):
            report.add(
                ERROR,
                "MAIN_FUNCTION_GENERATOR",
                "the main function yields, so it gives a generator",
                "return a list",
                here,
            )
            return
        if not isinstance(here, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            stack.extend(ast.iter_child_nodes(here))


def _parameters(function, types, report):
    arguments = function.args
    for variadic, stars in ((arguments.vararg, "*"), (arguments.kwarg, "**")):
        if variadic is not None:
            report.add(
                ERROR,
                "PARAMETER_VARIADIC",
                "%s%s takes any number of arguments; an edge feeds one named input"
                % (stars, variadic.arg),
                "take a list or a dict instead",
                variadic,
            )
    positional = list(getattr(arguments, "posonlyargs", ())) + arguments.args
    missing = len(positional) - len(arguments.defaults)
    defaults = [None] * missing + arguments.defaults
    found = [
        _parameter(each, default, "positional", types, report)
        for each, default in zip(positional, defaults)
    ]
    found += [
        _parameter(each, default, "keyword", types, report)
        for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults)
    ]
    if len(found) > PARAMETERS_MAX:
        raise Refused(
            "TOO_MANY_PARAMETERS", "more than %d parameters" % PARAMETERS_MAX, "", function
        )
    return found


def _parameter(argument, default, kind, types, report):
    if argument.annotation is None:
        report.add(
            WARNING,
            "ANNOTATION_MISSING",
            "the parameter %s has no annotation; it takes anything" % argument.arg,
            "annotate it, so that edges into it can be proven",
            argument,
        )
    form = _annotation(argument.annotation, types, report)
    text = None
    if default is not None:
        value = _plain(default)
        if value is None and argument.annotation is not None:
            form = _optional(form)  # `x: int = None` means int | None
        if value is not _UNKNOWN:
            text = _wire(value)
        elif isinstance(default, ast.Attribute):
            text = _enum_default(default, form, types)
    return {
        "name": argument.arg,
        "kind": kind,
        "type": form,
        "required": default is None,
        "default_json": text,
        "line": argument.lineno,
        "column": report._column(argument.lineno, argument.col_offset),
    }


def _annotation(node, types, report):
    if node is None:
        return {"t": "any"}
    try:
        return types.of(node)
    except Refused as refused:
        place = refused.node if hasattr(refused.node, "lineno") else node
        report.add(ERROR, refused.code, refused.message, refused.hint, place)
        return {"t": "any"}


def _optional(form):
    members = form["any_of"] if form["t"] == "union" else [form]
    if form["t"] in ("any", "none") or {"t": "none"} in members:
        return form
    return {"t": "union", "any_of": members + [{"t": "none"}]}


def _enum_default(node, form, types):
    options = form["any_of"] if form["t"] == "union" else [form]
    for option in options:
        if (
            option["t"] == "enum"
            and node.attr in option["members"]
            and types.scope.dotted(node.value) == option["name"]
        ):
            return _wire(option["members"][node.attr])
    return None


def _wire(value):
    """A default as JSON text, or None where JSON has no such value."""
    try:
        text = json.dumps(_to_json(value, 0), ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
    except (ValueError, TypeError, RecursionError):
        return None
    return text if len(text) <= DEFAULT_CHARS_MAX and "\\u0000" not in text else None


def _to_json(value, depth):
    if depth > DEPTH_MAX:
        raise ValueError(depth)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, complex):
        return [value.real, value.imag]
    if isinstance(value, (list, tuple)):
        return [_to_json(each, depth + 1) for each in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_to_json(each, depth + 1) for each in value), key=json.dumps)
    if isinstance(value, dict):
        keys = [key if isinstance(key, str) else json.dumps(_to_json(key, 0)) for key in value]
        return dict(zip(keys, [_to_json(each, depth + 1) for each in value.values()]))
    raise TypeError(type(value))


def _returns(function, types, report):
    node = function.returns
    if node is None:
        report.add(
            WARNING,
            "ANNOTATION_MISSING",
            "the function has no return annotation; it may give anything",
            "annotate it, so that edges from it can be proven",
            function,
        )
    return _annotation(node, types, report)


# ---------------------------------------------------------------- imports


def read_imports(tree, scope, report):
    """Top-level names of the imported modules, each once, with where and whether guarded."""
    found = {}
    stack = [(statement, False, False) for statement in reversed(tree.body)]
    while stack:
        here, guarded, typing_only = stack.pop()
        if isinstance(here, ast.ImportFrom) and here.level:
            report.add(
                ERROR,
                "RELATIVE_IMPORT",
                "a node is one file: there is nothing to import relatively",
                "put what it needs into the source",
                here,
            )
        elif isinstance(here, (ast.Import, ast.ImportFrom)) and not typing_only:
            names = (
                [alias.name for alias in here.names]
                if isinstance(here, ast.Import)
                else [here.module or ""]
            )
            for name in names:
                _keep_import(found, name, here, guarded)
        guards = isinstance(here, _TRIES) and _guards_imports(here)
        checking = isinstance(here, ast.If) and scope.checks_types(here.test)
        body = set(map(id, getattr(here, "body", ()) if guards or checking else ()))
        for child in _statements_in(here):
            inside = id(child) in body
            stack.append(
                (child, guarded or (guards and inside), typing_only or (checking and inside))
            )
    return list(found.values())


def _statements_in(node):
    """The statements in a statement's blocks: no expression holds one, and most nodes are those."""
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        for each in getattr(node, name, ()):
            yield each


def _keep_import(found, name, node, guarded):
    top = name.split(".")[0]
    known = found.get(top)
    if known is not None:
        known["guarded"] = known["guarded"] and guarded
        known["modules"].append(name) if len(known["modules"]) < 20 else None
    elif len(found) < IMPORTS_MAX:
        found[top] = {
            "name": top,
            "modules": [name],
            "line": node.lineno,
            "standard": is_standard(top),
            "guarded": guarded,
        }


def _guards_imports(node):
    for handler in node.handlers:
        if handler.type is None:
            return True
        kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
        for kind in kinds:
            if isinstance(kind, ast.Name) and kind.id in (
                "ImportError",
                "ModuleNotFoundError",
                "Exception",
            ):
                return True
    return False


def is_standard(name):
    """Whether a module comes with this very Python."""
    names = getattr(sys, "stdlib_module_names", None)
    if names is None:
        names = _listed_standard()
    return name in names or name == "__future__"


def _listed_standard():
    """Python 3.9 has no list of its own modules: look at its folder, once."""
    if not _LISTED:
        _LISTED.update(sys.builtin_module_names)
        folder = os.path.dirname(os.__file__)
        for path in (folder, os.path.join(folder, "lib-dynload")):
            if os.path.isdir(path):
                _LISTED.update(entry.split(".")[0] for entry in os.listdir(path))
        _LISTED.discard("site-packages")
    return _LISTED


_LISTED = set()


# ---------------------------------------------------------------- the program


def analyze(code, main_function, version, given=None):
    """Read one source; everything that is wrong with it becomes a diagnostic.

    `given` are forms of types that it may name without defining them.
    """
    report = Report(code)
    result = {"function": None, "imports": [], "diagnostics": report.found}
    result.update({"unknown_types": [], "custom_types": []})
    tree = _parse(code, version, report)
    if tree is None:
        return result
    try:
        scope = Scope(tree)
        result["imports"] = read_imports(tree, scope, report)
        function = find_main(scope, main_function)
        types = Types(scope, report, given)
        result.update({"unknown_types": types.unknown, "custom_types": types.used})
        result["function"] = read_function(function, types, report)
    except Refused as refused:
        report.add(ERROR, refused.code, refused.message, refused.hint, refused.node)
    except (RecursionError, MemoryError):
        report.add(ERROR, "SOURCE_TOO_COMPLEX", "the source is nested too deeply to be read")
    return result


def _parse(code, version, report):
    own = tuple(sys.version_info[:2])
    feature = tuple(version) if version and tuple(version) < own else own
    try:
        tree = ast.parse(code, "<node>", "exec", feature_version=feature)
        # Compiling finds what parsing does not (`return` outside of a function); it runs nothing.
        compile(tree, "<node>", "exec", dont_inherit=True)
        return tree
    except SyntaxError as error:
        line, column = error.lineno or 0, error.offset or 0
        report.add(ERROR, "SYNTAX_ERROR", error.msg or "invalid syntax", "", None, line, column)
    except (RecursionError, MemoryError):
        report.add(
            ERROR,
            "SOURCE_TOO_COMPLEX",
            "the source is nested too deeply to be read",
            "split long expressions over several statements",
        )
    except ValueError as error:
        report.add(ERROR, "SYNTAX_ERROR", str(error))
    return None


def limit():
    """Give this process less than it needs to hurt anybody."""
    for what, value in (
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_AS, ADDRESS_SPACE_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 16),
    ):
        _soft, hard = resource.getrlimit(what)
        ceiling = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (ceiling, ceiling))
    sys.setrecursionlimit(RECURSION_LIMIT)


def main():
    limit()
    sys.warnoptions[:] = ["ignore"]
    import warnings

    warnings.simplefilter("ignore")
    request = json.loads(sys.stdin.buffer.read().decode("utf-8"))
    result = analyze(
        request["code"], request["main_function"], request.get("version"), request.get("types")
    )
    sys.stdout.buffer.write(json.dumps(result).encode("utf-8"))
    sys.stdout.buffer.flush()
    os._exit(0)  # tearing down a hostile syntax tree may recurse; there is nothing left to do


if __name__ == "__main__":
    main()
