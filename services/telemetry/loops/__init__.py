"""What telemetry does by itself."""
