"""Generated from protos/qflow/isolation/v1; see `make proto`."""
