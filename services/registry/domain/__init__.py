"""Rules of the registry: pure functions over frozen values."""

from __future__ import annotations
