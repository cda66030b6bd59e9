"""The servicers of the orchestrator: decode, call one use case, encode."""
