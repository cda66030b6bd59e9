"""Generated from protos/qflow/runner; see `make proto`."""
