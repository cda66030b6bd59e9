"""Read a node's source without running any of it: signature, types and imports.

Standard library only, any Python from 3.9 on, as the runner's agent; its `main` runs in a process
of the Python that the node asks for, so that its own grammar decides. Takes one JSON object
`{"code", "main_function", "version": [3, 12], "types": {name: form}}` on standard input, gives one
on standard output: `{"function": {...} | null, "imports": [...], "diagnostics": [...],
"unknown_types": [...], "custom_types": [...]}`. What comes in is hostile: this
process limits itself first, and whoever started it survives its death.

Its folder alone is on that Python's path, so its modules name each other relatively.
"""

from __future__ import annotations

from .program import analyze, main

__all__ = ["analyze", "main"]
