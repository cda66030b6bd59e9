"""What the orchestrator reaches outside of the database."""
