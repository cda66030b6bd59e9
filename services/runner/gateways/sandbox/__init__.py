"""Sandboxes: where user code runs, and how strongly it is isolated."""

from __future__ import annotations
