"""Generated from protos/qflow/auth/v1; see `make proto`."""
