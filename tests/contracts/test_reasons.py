"""A reason is a name that clients branch on: it has one code, wherever it is told."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from services.kit import errors

_SERVICES: Final = Path(__file__).parents[2] / "services"
_KINDS: Final = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.QflowError)
}
# Helpers of several modules: the kind that each makes, with the place of the reason.
_HELPERS: Final = {"invalid": ("InvalidArgument", 1), "no_such": ("NotFound", 2)}


def _reasons(path: Path) -> Iterator[tuple[str, str]]:
    """Give the reasons that a module tells by their names, each with its kind."""
    tree = ast.parse(path.read_text())
    named = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign | ast.Assign) and isinstance(node.value, ast.Constant)
        for target in ([node.target] if isinstance(node, ast.AnnAssign) else node.targets)
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name | ast.Attribute):
            continue
        called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        if called not in _KINDS and called not in _HELPERS:
            continue
        kind, at = _HELPERS.get(called, (called, 0))
        if len(node.args) <= at:
            continue
        given = node.args[at]
        reason = given.value if isinstance(given, ast.Constant) else None
        if isinstance(given, ast.Name):
            reason = named.get(given.id)
        if isinstance(reason, str) and reason.isupper():
            yield reason, "ResourceExhausted" if kind == "QuotaExceeded" else kind


def test_a_reason_has_one_code() -> None:
    kinds: dict[str, set[str]] = defaultdict(set)
    for path in sorted(_SERVICES.rglob("*.py")):
        for reason, kind in _reasons(path):
            kinds[reason].add(kind)
    assert len(kinds) > 200
    assert {} == {reason: found for reason, found in kinds.items() if len(found) > 1}
