"""How a sealed text begins; apart from what seals, so that nobody imports that for it."""

from __future__ import annotations

from typing import Final

SEALED_MARK: Final = '"qf1.'
