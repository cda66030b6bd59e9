"""One function for each thing that telemetry does."""
