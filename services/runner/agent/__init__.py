"""What runs beside user code: one file of standard library, for every Python from 3.9."""

from __future__ import annotations
