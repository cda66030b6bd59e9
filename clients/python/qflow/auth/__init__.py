"""Generated from protos/qflow/auth; see `make proto`."""
