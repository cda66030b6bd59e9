"""The prefix of a sealed text; separate, so that checking for it imports no cryptography."""

from __future__ import annotations

from typing import Final

SEALED_MARK: Final = '"qf1.'
