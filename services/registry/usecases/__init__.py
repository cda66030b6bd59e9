"""Use cases of the registry: one function and one transaction each."""

from __future__ import annotations
