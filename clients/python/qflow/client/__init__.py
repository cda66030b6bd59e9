"""The typed client: connections, what is stored, and runs, over the generated stubs."""
