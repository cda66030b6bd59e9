"""Generated from protos/qflow/registry/v1; see `make proto`."""
