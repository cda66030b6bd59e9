"""Generated from protos/qflow/failure/v1; see `make proto`."""
