"""Generated from protos/buf; see `make proto`."""
