"""The source text of a node: its function, and what that needs of its module.

A node is self-contained: the registry stores one text per node. A file may contain many nodes and
workflows; only what the function refers to is included, and never Qflow itself.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import inspect
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

from qflow.exceptions import AuthoringError

_PEP_723: Final = re.compile(r"(?m)^# /// script$\s(?:^#(?:| .*)$\s)+^# ///$\n?")
_DEFINITIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_FUTURE: Final = "from __future__ import annotations\n"


def node_source(function: Callable[..., Any]) -> str:
    """Return the source of a node: with the imports, classes, constants and helpers it uses.

    Raises AuthoringError if it is not self-contained: a nested function, a lambda, a name that
    comes from Qflow or from another module of the author.
    """
    name = getattr(function, "__name__", "")
    if name == "<lambda>" or "." in getattr(function, "__qualname__", "."):
        raise AuthoringError(
            f"{name or function!r} is not a function of a module: a node is one that stands at the "
            "top level of its file"
        )
    try:
        path = inspect.getsourcefile(function)
        text = Path(path).read_text("utf-8") if path else ""
    except (TypeError, OSError):
        text = ""
    if not text:
        raise AuthoringError(f"the source of {name} is not to be had: write it into a file")
    return _cut(text, name, Path(path or "").resolve())


def _cut(text: str, name: str, path: Path) -> str:
    tree = ast.parse(text)
    owners = {bound: at for at, each in enumerate(tree.body) for bound in _bound(each)}
    if name not in owners:
        raise AuthoringError(f"{path.name} defines no function {name} at its top level")
    wanted = [owners[name]]
    kept: set[int] = set()
    asked = {name}
    while wanted:
        at = wanted.pop()
        kept.add(at)
        for each in _names(tree.body[at]):
            if each in owners and each not in asked:
                asked.add(each)
                wanted.append(owners[each])
    lines = text.splitlines(keepends=True)
    parts = [_statement(tree.body[at], lines, asked, path) for at in sorted(kept)]
    header = found.group(0) + "\n" if (found := _PEP_723.search(text)) else ""
    future = _FUTURE + "\n" if _has_future(tree) else ""
    return header + future + "\n".join(parts).strip("\n") + "\n"


def _bound(statement: ast.stmt) -> Iterator[str]:  # noqa: C901  # one table
    """Yield the names that a module-level statement defines."""
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            yield statement.name
        case ast.Import():
            for each in statement.names:
                yield (each.asname or each.name).split(".")[0]
        case ast.ImportFrom() if statement.module != "__future__":
            for each in statement.names:
                yield each.asname or each.name
        case ast.If() | ast.Try() | ast.With() | ast.For() | ast.While():
            for inner in ast.iter_child_nodes(statement):
                for within in [inner] if isinstance(inner, ast.stmt) else _handled(inner):
                    yield from _bound(within)
        case _:
            for part in ast.walk(statement):
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                    yield part.id


def _handled(inner: ast.AST) -> list[ast.stmt]:
    return inner.body if isinstance(inner, ast.ExceptHandler) else []


def _names(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement reads, without those in decorators of Qflow."""
    decorators = getattr(statement, "decorator_list", [])
    ours = [each for each in decorators if _is_qflows(each)]
    parts = [each for each in ast.iter_child_nodes(statement) if each not in ours]
    for part in parts:
        for each in ast.walk(part):
            if isinstance(each, ast.Name):
                yield each.id
            elif isinstance(each, ast.Constant) and isinstance(each.value, str):
                # Maybe a quoted annotation; a needless name costs a line, a missing one breaks the
                # node.
                yield from _quoted(each.value)


def _quoted(text: str) -> Iterator[str]:
    if len(text) < 200 and "\n" not in text:  # noqa: PLR2004  # longer ones are texts
        try:
            tree = ast.parse(text, mode="eval")
        except (SyntaxError, ValueError):
            return
        yield from (each.id for each in ast.walk(tree) if isinstance(each, ast.Name))


def _statement(statement: ast.stmt, lines: list[str], asked: set[str], path: Path) -> str:
    """Return a statement's text, without unused imports and decorators of Qflow."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return _import(statement, asked, path)
    decorators = [
        f"@{ast.unparse(each)}\n"
        for each in getattr(statement, "decorator_list", [])
        if not _is_qflows(each)
    ]
    text = "".join([*decorators, *lines[statement.lineno - 1 : statement.end_lineno]])
    return f"\n{text}" if isinstance(statement, _DEFINITIONS) else text


def _is_qflows(decorator: ast.expr) -> bool:
    of = decorator.func if isinstance(decorator, ast.Call) else decorator
    text = ast.unparse(of)
    return text.split(".")[0] == "qflow" or text in {"node", "workflow"}


def _import(statement: ast.Import | ast.ImportFrom, asked: set[str], path: Path) -> str:
    names = [each for each in statement.names if (each.asname or each.name).split(".")[0] in asked]
    module = statement.module or "" if isinstance(statement, ast.ImportFrom) else ""
    level = statement.level if isinstance(statement, ast.ImportFrom) else 0
    for each in names:
        root = (module or each.name).split(".")[0]
        meant = {module or each.name, f"{module}.{each.name}"}
        if root == "qflow" and "qflow.attempt" not in meant:
            raise AuthoringError(
                f"{path.name}:{statement.lineno}: of Qflow a node uses qflow.attempt alone: it is "
                "a plain function that runs where nothing else of it is installed"
            )
        if root != "qflow" and (level or _is_ones_own(root, path)):
            named = "." * level + (module or each.name)
            raise AuthoringError(
                f"{path.name}:{statement.lineno}: a node stands alone, and {named} is a module of "
                "your own: move what it needs into this file, or make it a package to install"
            )
    copy = (
        ast.Import(names) if isinstance(statement, ast.Import) else ast.ImportFrom(module, names, 0)
    )
    return ast.unparse(copy) + "\n"


@cache
def _is_ones_own(root: str, path: Path) -> bool:
    """Return whether a module is among the author's files, where no installer would find it."""
    if root in sys.stdlib_module_names or hasattr(builtins, root):
        return False
    try:
        spec = importlib.util.find_spec(root)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    where = spec.origin or next(iter(spec.submodule_search_locations or ()), "")
    installed = {
        Path(sysconfig.get_path(each)).resolve() for each in ("purelib", "platlib", "stdlib")
    }
    place = Path(where).resolve()
    if any(place.is_relative_to(each) for each in installed):
        return False
    return place.is_relative_to(path.parent) or path.is_relative_to(place.parent)


def _has_future(tree: ast.Module) -> bool:
    return any(
        isinstance(each, ast.ImportFrom) and each.module == "__future__" for each in tree.body
    )
