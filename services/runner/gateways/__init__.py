"""What the runner reaches outside PostgreSQL: sandboxes, uv, files, the orchestrators."""

from __future__ import annotations
