"""What the runner does by itself."""

from __future__ import annotations
