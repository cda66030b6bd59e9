"""Generated from protos/qflow/telemetry/v1; see `make proto`."""
