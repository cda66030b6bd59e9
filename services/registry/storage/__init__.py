"""SQL of the registry, one module per group of tables."""

from __future__ import annotations
