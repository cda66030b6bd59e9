"""Analyze source code in a bounded child process."""

from __future__ import annotations
