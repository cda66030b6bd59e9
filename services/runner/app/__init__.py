"""Assembles the runner."""

from __future__ import annotations

from services.runner.app.build import build

__all__ = ["build"]
