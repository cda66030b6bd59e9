"""The parts of a flush: what it does to each table, by what the tables are about."""
