"""What is measured of every run that is over."""

from __future__ import annotations

from typing import Final

# Every finished run has this one, whatever became of it: it tells that the run was measured.
MARKER: Final = "execution_node_count"
# How many there are of one run, at most.
METRICS_OF_RUN: Final = 6
