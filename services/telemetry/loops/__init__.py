"""Background loops of telemetry."""
