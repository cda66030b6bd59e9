"""`python -m services.runner`."""

from __future__ import annotations

from services.kit.run import main
from services.runner.app import build

if __name__ == "__main__":
    main("runner", build)
