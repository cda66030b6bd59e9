"""Generated from protos/qflow/isolation; see `make proto`."""
