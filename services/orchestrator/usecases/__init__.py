"""What callers and loops ask of the orchestrator, one function per wish."""
