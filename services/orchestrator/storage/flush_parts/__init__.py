"""The parts of a flush: what it writes to each table, grouped by subject."""
