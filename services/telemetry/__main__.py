"""`python -m services.telemetry`."""

from __future__ import annotations

from services.kit.run import main
from services.telemetry.app import build

if __name__ == "__main__":
    main("telemetry", build)
