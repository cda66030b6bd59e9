"""The heartbeats of one call: whether it is alive, and its progress."""

from __future__ import annotations

from typing import Final

from qflow.types.values import ValueTextError, parse_strict

PROGRESS_BYTES_MAX: Final = 8192
_SHOWN_CHARS_MAX: Final = 200


class Pulse:
    """State derived from heartbeats; times are in seconds, by any one clock."""

    __slots__ = ("_beats", "_began_s", "_last_s", "_progress", "timeout_s")

    def __init__(self, timeout_s: float, *, now_s: float) -> None:
        self.timeout_s = timeout_s
        self._began_s = self._last_s = now_s
        self._beats = 0
        self._progress = b""

    def beat(self, progress: bytes, *, now_s: float) -> None:
        """Record a heartbeat; one without progress keeps the last."""
        self._beats += 1
        self._last_s = now_s
        self._progress = progress or self._progress

    def due_s(self) -> float:
        """Return when the next heartbeat is due."""
        return self._last_s + self.timeout_s

    def progress(self) -> str:
        """Return the last progress; empty if it is not JSON, since it is untrusted."""
        if not self._progress or len(self._progress) > PROGRESS_BYTES_MAX:
            return ""
        try:
            parse_strict(self._progress)
        except ValueTextError:
            return ""
        return self._progress.decode()

    def silence(self) -> str:
        """Return the error text of a call whose heartbeats stopped."""
        said = f"no heartbeat came for {self.timeout_s:g} s"
        if not self._beats:
            return f"{said}: not one since the call began"
        after_s = self._last_s - self._began_s
        progress = self.progress()
        shown = progress[:_SHOWN_CHARS_MAX] + ("…" if len(progress) > _SHOWN_CHARS_MAX else "")
        return f"{said}: the last came {after_s:.1f} s into the call" + (
            f", and said {shown}" if shown else ""
        )
