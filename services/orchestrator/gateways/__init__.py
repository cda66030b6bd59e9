"""What the orchestrator reaches outside of its database."""
