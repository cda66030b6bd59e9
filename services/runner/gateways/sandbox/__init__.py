"""Sandboxes: where user code runs, and how strongly it is held there."""

from __future__ import annotations
