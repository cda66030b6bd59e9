"""Resolve the names at a module's top level, statically."""

from __future__ import annotations

import ast
import importlib

from .vocabulary import BUILTINS, STAR_MODULES


class Scope:
    """The names at a module's top level, resolved statically."""

    def __init__(self, tree):
        self.imports = {}  # name -> dotted name
        self.classes = {}
        self.functions = {}
        self.aliases = {}  # name -> expression
        self.parameters = {}  # name of a generic alias -> its type parameters
        self.others = set()
        self.star = False
        self.postponed = False  # `from __future__ import annotations`: not evaluated
        self.order = []  # top-level functions, in order
        self._read(tree.body)

    def _read(self, body):
        """Read statements in source order, so that a later binding of a name wins."""
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
        """Return the blocks of a statement, each with whether only type checkers enter it.

        Of alternatives, the intended one is last: a handler replaces what it guards.
        """
        if not isinstance(statement, BLOCKS):
            return []
        body, orelse = getattr(statement, "body", []), getattr(statement, "orelse", [])
        if isinstance(statement, ast.If) and self.checks_types(statement.test):
            return [(orelse, False), (body, True)]
        cases = getattr(statement, "handlers", []) + getattr(statement, "cases", [])
        blocks = [each.body for each in cases]
        blocks += [body, orelse, getattr(statement, "finalbody", [])]
        return [(block, False) for block in blocks]

    def checks_types(self, test):
        """Return whether a condition holds only for type checkers."""
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
            # A function declared only for type checkers is defined elsewhere at run time.
            if not typing_only and not any(map(self._is_overload, statement.decorator_list)):
                self._bind(statement.name)
                self.functions[statement.name] = statement
                if top:
                    self.order.append(statement.name)
        elif type(statement).__name__ == "TypeAlias":  # `type X = …`, since Python 3.12
            self._bind(statement.name.id)
            self.aliases[statement.name.id] = statement.value
            self.parameters[statement.name.id] = statement.type_params
        else:
            for target, value in targets_of(statement):
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
        """Bind a name, hiding an earlier binding."""
        for known in (self.imports, self.classes, self.functions, self.aliases):
            known.pop(name, None)
        self.others.discard(name)

    def has(self, name):
        """Return whether the module binds a name."""
        return (
            name in self.imports
            or name in self.classes
            or name in self.functions
            or name in self.aliases
            or name in self.others
        )

    def dotted(self, node):
        """Return the dotted name of an expression, or None.

        With `import typing as t`, `t.List` is `typing.List`.
        """
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


def targets_of(statement):
    """Return the targets that a statement binds or deletes, each with its expression, if any."""
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


TRIES = tuple(getattr(ast, name) for name in ("Try", "TryStar") if hasattr(ast, name))
BLOCKS = (ast.If, ast.With, ast.AsyncWith, ast.For, ast.AsyncFor, ast.While) + TRIES
BLOCKS += tuple(getattr(ast, name) for name in ("Match",) if hasattr(ast, name))
