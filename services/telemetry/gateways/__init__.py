"""The machine that telemetry runs on."""
