"""The runner's rules: frozen values and pure functions."""

from __future__ import annotations
