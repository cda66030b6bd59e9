"""Analyze a node's source without running it: signature, types and imports.

Uses the standard library only, from Python 3.9 on, like the runner's agent: `main` runs under the
node's own Python, whose grammar decides. It reads one JSON object `{"code", "main_function",
"version": [3, 12], "types": {name: form}}` from standard input and writes one to standard output:
`{"function": {...} | null, "imports": [...], "diagnostics": [...], "unknown_types": [...],
"custom_types": [...]}`. The input is hostile: the process first limits itself, and its parent
survives its death.

Only its folder is on that Python's path, so its modules import each other relatively.
"""

from __future__ import annotations

from .program import analyze, main

__all__ = ["analyze", "main"]
