"""T3 and T4: containers of a Docker daemon."""
