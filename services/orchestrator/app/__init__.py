"""The orchestrator service, assembled."""

from __future__ import annotations

from services.orchestrator.app.build import build

__all__ = ["build"]
