"""Local runs: a workflow without a server, with the same types, checks and conversions.

Nodes run one after the other, in the order of the graph. Waits take no time; signals and approvals
come from `Local`. Memory limits, timeouts, retry delays and caches have no effect here.
"""

from __future__ import annotations

from qflow.local.edges import EdgeRefusedError, check
from qflow.local.execution import Local

__all__ = ["EdgeRefusedError", "Local", "check"]
