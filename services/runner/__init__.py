"""The runner: builds environments and runs nodes in sandboxed, warm interpreters."""

from __future__ import annotations
