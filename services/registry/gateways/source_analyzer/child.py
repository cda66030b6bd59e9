"""Run the analyzer in a child process with limits, under the node's own Python version."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import orjson
import structlog
from qflow.types import Type, to_json

from services.kit import child
from services.kit.pythons import Interpreter, closest, version_key
from services.registry.domain.source import (
    Diagnostic,
    SourceReport,
    failed,
    read_report,
    worst_first,
)

log = structlog.get_logger()

_FOLDER: Final = Path(__file__).parent
# Imported rather than run as a file, so that its bytecode is cached: compiling it would take as
# long as parsing a thousand lines. Its folder is last on the path, so that it shadows no library.
_PROGRAM: Final = f"""
import sys
sys.path.append({str(_FOLDER)!r})
import analyze
analyze.main()
"""
_WALL_S: Final = 8.0
_OUTPUT_BYTES_MAX: Final = 4 * 1024 * 1024
_CHILDREN_MAX: Final = 2
_TOO_COMPLEX: Final = (
    "SOURCE_TOO_COMPLEX",
    "the source is nested too deeply, or is too large, to be read within its limits",
    "split long expressions over several statements",
)


@dataclass(frozen=True, slots=True)
class Analysis:
    """A report, and the Python version whose grammar was used."""

    report: SourceReport
    grammar: str


class SourceAnalyzer:
    """Analyzes sources without running them, at most two at once."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(_CHILDREN_MAX)

    async def analyze(
        self,
        code: str,
        *,
        main_function: str,
        python_version: str,
        types: Mapping[str, Type] | None = None,
    ) -> Analysis:
        """Analyze a source; all faults are in the report, even for hostile input.

        The source may use the names in `types` without defining them.
        """
        interpreter = await asyncio.to_thread(closest, python_version)
        if interpreter is None:
            report = failed(
                "NO_INTERPRETER",
                "this machine has no Python that could read it",
                "have one installed beside the registry",
            )
            return Analysis(report, "")
        request = orjson.dumps(
            {
                "code": code,
                "main_function": main_function,
                "version": version_key(python_version),
                "types": {name: to_json(of) for name, of in (types or {}).items()},
            }
        )
        async with self._slots:
            answer = await _run(interpreter, request)
        report = failed(*_TOO_COMPLEX) if answer is None else _read(answer)
        return Analysis(_with_grammar(report, interpreter, python_version), interpreter.version)


def _read(answer: bytes) -> SourceReport:
    try:
        raw: Any = orjson.loads(answer)
        return read_report(raw)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        # A child that failed half-way, or integers too large for this JSON parser.
        log.warning("source_report_unreadable", fault=type(error).__name__)
        return failed(*_TOO_COMPLEX)


def _with_grammar(report: SourceReport, used: Interpreter, wanted: str) -> SourceReport:
    if used.version == wanted:
        return report
    told = Diagnostic(
        "info",
        "GRAMMAR_OF_OTHER_VERSION",
        f"Python {wanted} is not on this machine; {used.version} read the source instead",
        f"with Python {wanted} installed beside the registry, its own grammar decides",
    )
    return replace(report, diagnostics=worst_first([*report.diagnostics, told]))


async def _run(interpreter: Interpreter, request: bytes) -> bytes | None:
    """Run the child; None if it died, timed out or wrote too much."""
    try:
        done = await child.run(
            [str(interpreter.path), "-I", "-S", "-W", "ignore", "-c", _PROGRAM],
            stdin=request,
            env={"LC_ALL": "C.UTF-8"},
            timeout_s=_WALL_S,
            output_bytes_max=_OUTPUT_BYTES_MAX,
        )
    except (TimeoutError, child.OutputTooLargeError) as error:
        log.warning("source_analysis_ended", why=type(error).__name__, python=interpreter.version)
        return None
    if done.code != 0:
        log.warning("source_analysis_died", code=done.code, python=interpreter.version)
        return None
    return done.stdout
