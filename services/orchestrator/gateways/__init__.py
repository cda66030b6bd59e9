"""Clients of what the orchestrator uses besides its database."""
