"""Servicers of the registry: decode, call one use case, encode."""

from __future__ import annotations
