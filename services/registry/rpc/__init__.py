"""The registry's RPCs: decode, call one use case, encode."""

from __future__ import annotations
