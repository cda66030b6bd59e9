"""Backups: taken, verified by restoring them, and recovered from; their folder is authoritative."""
