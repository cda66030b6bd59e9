"""The orchestrator: durable executions of workflows."""
