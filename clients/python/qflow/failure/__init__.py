"""Generated from protos/qflow/failure; see `make proto`."""
