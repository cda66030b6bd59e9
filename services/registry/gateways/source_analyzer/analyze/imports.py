"""Collect the imports of a source, each module once."""

from __future__ import annotations

import ast
import os
import sys

from .report import ERROR
from .scope import TRIES

IMPORTS_MAX = 1_000


def read_imports(tree, scope, report):
    """Return the imported top-level modules, each once, with position and whether guarded."""
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
                _keep_import(found, name, here, guarded, report)
        guards = isinstance(here, TRIES) and _guards_imports(here)
        checking = isinstance(here, ast.If) and scope.checks_types(here.test)
        body = set(map(id, getattr(here, "body", ()) if guards or checking else ()))
        for child in _statements_in(here):
            inside = id(child) in body
            stack.append(
                (child, guarded or (guards and inside), typing_only or (checking and inside))
            )
    return list(found.values())


def _statements_in(node):
    """Yield the statements in a statement's blocks; expressions contain none."""
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        for each in getattr(node, name, ()):
            yield each


def _keep_import(found, name, node, guarded, report):
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
            "column": report.column(node.lineno, node.col_offset),
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
    """Return whether a module belongs to this Python's standard library."""
    names = getattr(sys, "stdlib_module_names", None)
    if names is None:
        names = _listed_standard()
    return name in names or name == "__future__"


def _listed_standard():
    """Return the standard modules by listing their folder, for Python 3.9, which has no list."""
    if not _LISTED:
        _LISTED.update(sys.builtin_module_names)
        folder = os.path.dirname(os.__file__)
        for path in (folder, os.path.join(folder, "lib-dynload")):
            if os.path.isdir(path):
                _LISTED.update(entry.split(".")[0] for entry in os.listdir(path))
        _LISTED.discard("site-packages")
    return _LISTED


_LISTED = set()
