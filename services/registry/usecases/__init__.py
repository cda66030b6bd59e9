"""What the registry does: one function and one transaction each."""

from __future__ import annotations
