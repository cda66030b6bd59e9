"""The runner's contract: decode, call one use case, encode."""

from __future__ import annotations
