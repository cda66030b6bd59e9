"""Telemetry: what runs cost, what went wrong, how the machines are, and what may be forgotten."""
