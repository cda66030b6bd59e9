"""What is stored is never run: no unpickling, no evaluation, in any process but the sandbox."""

from __future__ import annotations

import ast
from pathlib import Path

_SERVICES = Path(__file__).parents[3] / "services"
# The agent is what runs user code, inside the sandbox; the analyzer parses and runs nothing.
_SANDBOXED = _SERVICES / "runner" / "agent"
_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
_CALLS = {"eval", "exec", "__import__"}


def _faults(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Import(names=names):
                found += [each.name for each in names if each.name.split(".")[0] in _MODULES]
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in _MODULES:
                found.append(module)
            case ast.Call(func=ast.Name(id=name)) if name in _CALLS:
                found.append(name)
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="yaml"), attr=("load" | "unsafe_load") as name)
            ):
                found.append(f"yaml.{name}")
    return found


def test_no_service_unpickles_or_evaluates_anything() -> None:
    """X28."""
    faults = {
        str(path.relative_to(_SERVICES)): found
        for path in _SERVICES.rglob("*.py")
        if path.parent != _SANDBOXED and (found := _faults(path))
    }
    assert {} == faults
