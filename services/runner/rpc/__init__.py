"""The runner's servicers: decode, call one use case, encode."""

from __future__ import annotations
