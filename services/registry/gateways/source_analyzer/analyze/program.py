"""The program: reads one request from standard input, writes one report to standard output."""

from __future__ import annotations

import ast
import json
import os
import resource
import sys

from .annotations import Types
from .imports import read_imports
from .report import ERROR, Refused, Report
from .scope import Scope
from .signature import find_main, read_function

CPU_SECONDS = 5
ADDRESS_SPACE_BYTES = 1 << 30
RECURSION_LIMIT = 3_000
_TOO_COMPLEX = (
    ERROR,
    "SOURCE_TOO_COMPLEX",
    "the source is nested too deeply to be read",
    "split long expressions over several statements",
)


def analyze(code, main_function, version, given=None):
    """Analyze a source; all faults become diagnostics.

    `given` holds the forms of types that it may use without defining them.
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
        report.add(*_TOO_COMPLEX)
    return result


def _parse(code, version, report):
    own = tuple(sys.version_info[:2])
    feature = tuple(version) if version and tuple(version) < own else own
    hint = "it was read as Python %d.%d" % feature
    try:
        tree = ast.parse(code, "<node>", "exec", feature_version=feature)
        # Compiling finds faults that parsing does not (`return` outside a function); it runs no
        # code.
        compile(tree, "<node>", "exec", dont_inherit=True)
        return tree
    except SyntaxError as error:
        line, column = error.lineno or 0, error.offset or 0
        report.add(ERROR, "SYNTAX_ERROR", error.msg or "invalid syntax", hint, None, line, column)
    except (RecursionError, MemoryError):
        report.add(*_TOO_COMPLEX)
    except ValueError as error:
        report.add(ERROR, "SYNTAX_ERROR", str(error), hint)
    return None


def _limit():
    """Limit this process's resources."""
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
    """Process the request on standard input, and exit."""
    _limit()
    sys.warnoptions[:] = ["ignore"]
    import warnings

    warnings.simplefilter("ignore")
    request = json.loads(sys.stdin.buffer.read().decode("utf-8"))
    result = analyze(
        request["code"], request["main_function"], request.get("version"), request.get("types")
    )
    sys.stdout.buffer.write(json.dumps(result).encode("utf-8"))
    sys.stdout.buffer.flush()
    os._exit(0)  # freeing a hostile syntax tree may recurse too deeply
