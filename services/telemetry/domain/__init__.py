"""Records and rules of telemetry: frozen values and pure functions."""
