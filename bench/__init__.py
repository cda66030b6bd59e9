"""Measurements: floors and figures of one run, one JSON line each."""
