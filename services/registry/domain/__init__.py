"""What the registry decides: pure functions over frozen values."""

from __future__ import annotations
