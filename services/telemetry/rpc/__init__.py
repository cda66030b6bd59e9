"""Servicers of telemetry: decode, call one use case, encode."""
