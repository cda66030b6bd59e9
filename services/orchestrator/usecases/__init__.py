"""Use cases of callers and loops of the orchestrator."""
