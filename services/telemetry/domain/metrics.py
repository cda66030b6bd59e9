"""The metrics derived from every finished run."""

from __future__ import annotations

from typing import Final

# Every finished run has this metric, whatever its outcome: it marks the run as measured.
MARKER: Final = "execution_node_count"
# The highest number of metrics per run.
METRICS_OF_RUN: Final = 6
