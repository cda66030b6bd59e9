"""Generated from protos/buf/validate; see `make proto`."""
