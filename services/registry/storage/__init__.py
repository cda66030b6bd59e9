"""The SQL of the registry, one module per cluster of tables."""

from __future__ import annotations
