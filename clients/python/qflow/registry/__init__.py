"""Generated from protos/qflow/registry; see `make proto`."""
