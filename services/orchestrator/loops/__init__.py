"""Background loops of the orchestrator."""
