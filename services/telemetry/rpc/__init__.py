"""From messages to use cases and back."""
