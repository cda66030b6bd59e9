"""Convert annotations to structural forms: names, unions, aliases and subscripts."""

from __future__ import annotations

import ast

from . import brackets
from .records import Classes
from .report import WARNING, Refused, name_too_long, needs_brackets, not_a_type
from .values import DEPTH_MAX
from .vocabulary import (
    APPROXIMATED,
    DICTS,
    FROZENSETS,
    LISTS,
    NEVER_EMPTY,
    NOTHING,
    SCALARS,
    SETS,
    TUPLES,
)

PARTS_MAX = 1_000
PARTS_ALL_MAX = 10_000  # for all types of one function
UNKNOWN_MAX = 100


class Types:
    """Converts annotations to structural forms."""

    def __init__(self, scope, report, given=None):
        self.scope = scope
        self.report = report
        self.given = given or {}  # custom types: structural forms by name
        self.used = []  # names of the custom types that were used
        self.unknown = []  # names that the source does not define
        self.quoted = 0
        self.parts = 0
        self.parts_all = 0
        self.open = []  # classes and aliases being read; a repeated name is a recursion
        self.variables = {}  # type parameters of the function (`def f[T]`)
        self.classes = Classes(self)

    def of(self, node):
        """Return the form of an annotation; raises Refused if it is not a type."""
        self.parts = 0
        self.open = []
        if self.parts_all > PARTS_ALL_MAX:
            return {"t": "any"}  # already reported for the type that exceeded the limit
        return self.read(node, 1)

    def count_parts(self, count):
        """Count parts against the function's limit; an excess is reported at the annotation."""
        self.parts_all += count
        if self.parts_all > PARTS_ALL_MAX:
            raise Refused(
                "TYPE_TOO_LARGE",
                "the types of the function have more than %d parts in all" % PARTS_ALL_MAX,
                "use Any, or dict, for parts that need not be checked",
            )

    def read(self, node, depth):
        """Return the form of an annotation, or of a part of one."""
        self.count_parts(1)
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
                "TYPE_TOO_DEEP",
                "the type is nested deeper than %d" % DEPTH_MAX,
                "use Any, or dict, for the part that need not be checked",
                node,
            )
        if isinstance(node, ast.Constant):
            return self._constant(node, depth)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return self.union(self._operands(node), depth)
        if isinstance(node, ast.Subscript):
            return brackets.read_subscript(self, node, depth)
        if isinstance(node, (ast.Name, ast.Attribute)):
            return self.name(node, depth)
        raise not_a_type(node)

    def _constant(self, node, depth):
        if node.value is None:
            return {"t": "none"}
        if isinstance(node.value, str):
            self.quoted += 1
            try:
                return self.read(self.forward(node), depth)
            finally:
                self.quoted -= 1
        raise not_a_type(node)

    def forward(self, node):
        """Return the annotation in a string."""
        try:
            inner = ast.parse(node.value.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise not_a_type(node, "the text of this annotation") from None
        for each in ast.walk(inner):  # report the position of the string
            if hasattr(each, "lineno"):
                each.lineno, each.col_offset = node.lineno, node.col_offset
        return inner

    def _operands(self, node):
        found = []
        while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            found.append(node.right)
            node = node.left
        return [node] + found[::-1]

    def union(self, nodes, depth):
        """Return the form of a union."""
        members = []
        for node in nodes:
            form = self.read(node, depth + 1)
            for each in form["any_of"] if form["t"] == "union" else [form]:
                if each not in members:
                    members.append(each)
        return members[0] if len(members) == 1 else {"t": "union", "any_of": members}

    def is_unpacked(self, node):
        """Return whether a node stands for any number of types: `*Ts` or `Unpack[Ts]`."""
        if isinstance(node, ast.Subscript):
            return self.scope.dotted(node.value) == "typing.Unpack"
        return isinstance(node, ast.Starred)

    def name(self, node, depth):
        """Return the form of a name."""
        name = self.scope.dotted(node)
        if name is None:
            raise not_a_type(node)
        if isinstance(node, ast.Name) and node.id in self.variables:
            return self._variable(self.variables[node.id], depth)
        form = self.known(name, node)
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
                return self.opaque(name, node)
            raise Refused(
                "TYPE_UNKNOWN",
                "the name %s is not defined" % name[:200],
                "import or define it, or write Any",
                node,
            )
        return self.opaque(name, node)

    def _custom(self, name, node):
        """Return the form of a custom type that the source does not define, or None."""
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
        self.count_parts(_parts_of(form))
        if name not in self.used:
            self.used.append(name)
        return form

    def known(self, name, node):
        """Return the form of a well-known name without arguments; None for other names."""
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
            return self.approximated(name, [{"t": "any"}, {"t": "any"}], node)
        if name in NOTHING:
            return {"t": "none"}
        if name in NEVER_EMPTY:
            raise needs_brackets(name, node)
        return None

    def approximated(self, name, arguments, node):
        """Return the plainer form in which values of a type arrive, with a warning."""
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

    def opaque(self, name, node, hint="take and give plain values, records or files"):
        """Return the form of a type known only by name, with a warning."""
        name = name.lstrip(".")
        if len(name) > 255:
            raise name_too_long(node)
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
                    return self.opaque(full, node)
            variables = {each.name: each for each in getattr(definition, "type_params", ())}
            return self.opened(
                full, node, lambda: self.classes.read(definition, full, node, depth), variables
            )
        if first in scope.aliases and not rest:
            value = scope.aliases[first]
            variables = {each.name: each for each in scope.parameters.get(first, ())}
            return self.opened(
                first, node, lambda: self.alias(first, value, node, depth), variables
            )
        if first in scope.functions:
            raise not_a_type(node, "the function %s" % first)
        return None

    def opened(self, name, node, read, variables):
        """Read a class or an alias under its own type parameters; refuses recursion."""
        if name in self.open:
            raise Refused(
                "TYPE_RECURSIVE",
                "the type %s contains itself" % name,
                "use Any, or dict, where it does",
                node,
            )
        self.open.append(name)
        outer = self.variables
        self.variables = variables  # its own, not those of the annotation that names it
        try:
            return read()
        finally:
            self.variables = outer
            self.open.pop()

    def alias(self, name, value, node, depth):
        """Return the form of an alias from the assigned expression."""
        if isinstance(value, ast.Call):
            return self.classes.read_call(name, value, node, depth)
        if isinstance(value, (ast.Name, ast.Attribute, ast.Subscript, ast.BinOp, ast.Constant)):
            return self.read(value, depth)
        return self.opaque(name, node)

    def _variable(self, parameter, depth):
        if isinstance(parameter, brackets.Argument):
            # Read at each use, so that its parts and depth count there, but with the names in scope
            # where it was written.
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
            return self.union(bound.elts, depth)
        return self.read(bound, depth)


def _parts_of(form):
    """Return the number of types in a structural form; bounded when it was stored."""
    count, stack = 0, [form]
    while stack:
        here = stack.pop()
        if isinstance(here, dict):
            count += "t" in here
            stack.extend(here.values())
        elif isinstance(here, list):
            stack.extend(here)
    return count
