"""What the orchestrator reads and writes, one module per cluster of tables."""
