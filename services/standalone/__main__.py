"""`python -m services.standalone [up|demo|status|token|…]`: Qflow on one machine."""

from __future__ import annotations

import sys

from services.standalone.cli import main

if __name__ == "__main__":
    sys.exit(main())
