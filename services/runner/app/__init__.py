"""The runner put together."""

from __future__ import annotations

from services.runner.app.build import build

__all__ = ["build"]
