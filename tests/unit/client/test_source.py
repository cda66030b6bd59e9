"""A node's text: its function and what that needs, and nothing of Qflow."""

from __future__ import annotations

import importlib.util
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from qflow import AuthoringError
from qflow.authoring.source import node_source

Load = Callable[..., Any]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    def loaded(text: str, name: str = "nodes_of_a_test") -> Any:
        path = tmp_path / f"{name}.py"
        path.write_text(textwrap.dedent(text), "utf-8")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return loaded


def test_a_node_takes_what_it_names_and_leaves_the_rest(load: Load) -> None:
    module = load(
        """
        from __future__ import annotations
        import json, math
        from dataclasses import dataclass, field
        import qflow

        SCALE = 3
        UNUSED = object()

        @dataclass
        class Point:
            x: int

        def helper(p: Point) -> int:
            return p.x * SCALE

        def other() -> None: ...

        @qflow.node
        def grow(p: Point) -> float:
            return math.sqrt(helper(p))

        @qflow.workflow
        def flow(p: Point) -> float:
            return grow(p)
        """
    )
    expected = textwrap.dedent(
        """\
        from __future__ import annotations

        import math

        from dataclasses import dataclass

        SCALE = 3


        @dataclass
        class Point:
            x: int


        def helper(p: Point) -> int:
            return p.x * SCALE


        def grow(p: Point) -> float:
            return math.sqrt(helper(p))
        """
    )
    assert expected == module.grow.source


def test_what_is_sent_runs_by_itself(load: Load) -> None:
    module = load(
        """
        import functools
        import qflow

        @functools.cache
        def fib(n: int) -> int:
            return n if n < 2 else fib(n - 1) + fib(n - 2)

        try:
            import nothing_of_this_name as fast
        except ImportError:
            fast = None

        @qflow.node(name="fibonacci")
        def run(n: int) -> "list[int]":
            return [fib(each) for each in range(n)] if fast is None else []
        """
    )
    alone: dict[str, Any] = {}
    exec(module.run.source, alone)  # that is what is tried
    assert [0, 1, 1, 2, 3] == alone["run"](5)
    assert "qflow" not in module.run.source


def test_the_declared_dependencies_of_the_file_go_along(load: Load) -> None:
    module = load(
        """\
        # /// script
        # dependencies = ["numpy>=2"]
        # ///
        def run(n: int) -> int:
            return n
        """
    )
    assert node_source(module.run).startswith("# /// script\n# dependencies")


def test_a_node_that_uses_qflow_is_refused_with_the_place(load: Load) -> None:
    module = load("import qflow\n\ndef run(n: int) -> object:\n    return qflow.Retry()\n")
    with pytest.raises(AuthoringError, match=r"nodes_of_a_test\.py:1: of Qflow a node uses"):
        node_source(module.run)


def test_what_an_attempt_may_say_of_itself_goes_along(load: Load) -> None:
    module = load(
        """
        import qflow
        from qflow.attempt import heartbeat

        @qflow.node
        def run(n: int) -> int:
            heartbeat(n)
            return n
        """
    )
    assert module.run.source.startswith("from qflow.attempt import heartbeat\n")
    assert "import qflow\n" not in module.run.source


def test_a_node_that_needs_a_module_of_ones_own_is_refused(load: Load, tmp_path: Path) -> None:
    (tmp_path / "mine_beside.py").write_text("X = 1\n")
    module = load(
        f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        import mine_beside

        def run(n: int) -> int:
            return mine_beside.X
        """
    )
    with pytest.raises(AuthoringError, match="mine_beside is a module of your own"):
        node_source(module.run)


def test_a_lambda_and_a_nested_function_are_no_nodes() -> None:
    def inner(n: int) -> int:
        return n

    for function in (inner, lambda n: n):
        with pytest.raises(AuthoringError, match="top level of its file"):
            node_source(function)
