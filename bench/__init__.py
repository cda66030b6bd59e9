"""Measurements: floors and figures of one run, one JSON line each."""

from __future__ import annotations

import services as _services  # noqa: F401  # first: floors and drivers use the services' transport
