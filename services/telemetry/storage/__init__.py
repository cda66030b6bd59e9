"""The statements, one module per table cluster."""
