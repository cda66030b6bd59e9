"""`python -m services.orchestrator`."""

from __future__ import annotations

from services.kit.run import main
from services.orchestrator.app import build

if __name__ == "__main__":
    main("orchestrator", build)
