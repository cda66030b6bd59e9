"""The runner's background loops."""

from __future__ import annotations
