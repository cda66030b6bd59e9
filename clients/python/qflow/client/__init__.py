"""The typed client over the generated stubs."""
