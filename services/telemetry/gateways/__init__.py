"""Gateways of telemetry: the machine, and the backup program."""
