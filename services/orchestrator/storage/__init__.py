"""SQL of the orchestrator, one module per group of tables."""
