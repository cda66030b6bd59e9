"""Generated from protos/qflow/runner/v1; see `make proto`."""
