"""Generated from protos/qflow/telemetry; see `make proto`."""
