"""Use cases of telemetry."""
