"""The orchestrator's contract: decode, call one use case, encode."""
