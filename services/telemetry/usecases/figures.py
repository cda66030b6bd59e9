"""Metrics about telemetry's own work."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable

from services.kit.figures import Figure, counter, gauge
from services.telemetry.domain.retention import RULES


class Work:
    """What was done since the process started."""

    def __init__(self) -> None:
        self.measured = 0
        self.passes = 0
        self._forgotten: Counter[str] = Counter({rule.subject: 0 for rule in RULES})
        self._passed_at = 0.0

    def forgot(self, subject: str, rows: int) -> None:
        """Count removed rows."""
        self._forgotten[subject] += rows

    def passed(self) -> None:
        """Count a successful pass of retention."""
        self.passes += 1
        self._passed_at = time.time()

    def figures(self) -> Iterable[Figure]:
        """Yield the metrics."""
        text = "Executions whose metrics were derived."
        yield counter("qflow_telemetry_executions_measured", text, self.measured)
        text = "Rows that retention removed, by what they record."
        gone = [((subject,), float(rows)) for subject, rows in self._forgotten.items()]
        yield Figure("qflow_telemetry_retention_rows", text, "counter", ("subject",), gone)
        text = "Passes of retention that went through."
        yield counter("qflow_telemetry_retention_passes", text, self.passes)
        text = "When retention last went through, in seconds since 1970; 0: not yet."
        yield gauge("qflow_telemetry_retention_last_pass_timestamp_seconds", text, self._passed_at)
