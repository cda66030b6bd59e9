"""What the runner does: attempts, environments, files, and its own membership."""

from __future__ import annotations
