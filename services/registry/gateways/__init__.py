"""What the registry asks of the outside: interpreters, passwords, files, the runner."""

from __future__ import annotations
