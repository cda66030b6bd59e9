"""Adapters to what is outside PostgreSQL: sandboxes, uv, files, the orchestrators."""

from __future__ import annotations
