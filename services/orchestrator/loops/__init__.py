"""What the orchestrator does by itself."""
