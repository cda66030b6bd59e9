"""A workflow without any server: the same types, checks and conversions, in this process.

Nodes run one after the other, in the order in which they can. Waits take no time; signals and
approvals are answered by what `Local` was given. What needs a sandbox or a clock does not hold
here: limits of memory and time, retries' delays, caches.
"""

from __future__ import annotations

from qflow.local.edges import EdgeRefusedError, check
from qflow.local.execution import Local

__all__ = ["EdgeRefusedError", "Local", "check"]
