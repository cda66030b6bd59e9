"""Generated from protos/qflow/orchestrator; see `make proto`."""
