"""How a sealed text begins; on its own, so that checking for it imports no cryptography."""

from __future__ import annotations

from typing import Final

SEALED_MARK: Final = '"qf1.'
