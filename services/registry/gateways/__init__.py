"""Gateways of the registry: interpreters, password hashes, files, Redis, the runner."""

from __future__ import annotations
