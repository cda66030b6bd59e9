"""Generated from protos/qflow/orchestrator/v1; see `make proto`."""
