"""Which lines of the engine's core the worlds reach: traced in those files alone."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType, ModuleType
from typing import Any


def lines_of(module: ModuleType) -> dict[int, str]:
    """Give the lines that functions of a module can run, with the function each belongs to."""
    assert module.__file__ is not None
    with open(module.__file__, encoding="utf-8") as source:  # noqa: PTH123
        whole = compile(source.read(), module.__file__, "exec")
    found: dict[int, str] = {}
    for code in _functions(whole):
        for _, _, line in code.co_lines():
            if line is not None and line > code.co_firstlineno:
                found[line] = code.co_qualname
    return found


def _functions(code: CodeType) -> Iterator[CodeType]:
    for each in code.co_consts:
        if isinstance(each, CodeType):
            if each.co_flags & _OPTIMIZED:  # a function, not the body of a class
                yield each
            yield from _functions(each)


_OPTIMIZED = 1


@contextmanager
def reached(modules: Iterable[ModuleType]) -> Iterator[dict[str, set[int]]]:
    """Write down which lines of these modules run inside the block."""
    hit: dict[str, set[int]] = {str(each.__file__): set() for each in modules}

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        lines = hit.get(frame.f_code.co_filename)
        if lines is None:
            return None

        def line(frame: FrameType, event: str, arg: Any) -> Any:
            lines.add(frame.f_lineno)
            return line

        return line

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield hit
    finally:
        sys.settrace(before)
