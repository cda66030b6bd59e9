"""The runner's SQL."""

from __future__ import annotations
