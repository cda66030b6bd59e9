"""SQL of telemetry, one module per group of tables."""
