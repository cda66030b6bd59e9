"""What the registry does by itself."""

from __future__ import annotations
