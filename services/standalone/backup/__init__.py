"""Backups: taken, proven by restoring them, gone back to. The folder they lie in is the truth."""
