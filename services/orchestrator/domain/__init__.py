"""The rules of executions: pure, without clock, I/O or protobuf."""
