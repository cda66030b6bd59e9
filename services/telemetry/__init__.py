"""Telemetry: metrics, error logs, health samples, retention and backups."""
