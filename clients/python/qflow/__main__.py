"""The command `qflow`, as `python -m qflow`."""

from __future__ import annotations

import sys

from qflow.cli.app import main

sys.exit(main())
