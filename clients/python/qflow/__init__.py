"""qflow."""
