"""The heartbeats of one call: whether it still goes on, and how far it has come."""

from __future__ import annotations

from typing import Final

from qflow.types.values import ValueTextError, parse_strict

PROGRESS_BYTES_MAX: Final = 8192
_SHOWN_CHARS_MAX: Final = 200


class Pulse:
    """What is known of a call by its beats; times are in seconds, of whichever clock is given."""

    __slots__ = ("_beats", "_began_s", "_last_s", "_progress", "timeout_s")

    def __init__(self, timeout_s: float, *, now_s: float) -> None:
        self.timeout_s = timeout_s
        self._began_s = self._last_s = now_s
        self._beats = 0
        self._progress = b""

    def beat(self, progress: bytes, *, now_s: float) -> None:
        """Take a beat; one that says nothing leaves what was said before."""
        self._beats += 1
        self._last_s = now_s
        self._progress = progress or self._progress

    def due_s(self) -> float:
        """Give when the next beat must have come."""
        return self._last_s + self.timeout_s

    def progress(self) -> str:
        """Give how far the code said it had come: untrusted, so nothing where that is no JSON."""
        if not self._progress or len(self._progress) > PROGRESS_BYTES_MAX:
            return ""
        try:
            parse_strict(self._progress)
        except ValueTextError:
            return ""
        return self._progress.decode()

    def silence(self) -> str:
        """Say for whom it may concern how the call fell silent."""
        said = f"no heartbeat came for {self.timeout_s:g} s"
        if not self._beats:
            return f"{said}: not one since the call began"
        after_s = self._last_s - self._began_s
        progress = self.progress()
        shown = progress[:_SHOWN_CHARS_MAX] + ("…" if len(progress) > _SHOWN_CHARS_MAX else "")
        return f"{said}: the last came {after_s:.1f} s into the call" + (
            f", and said {shown}" if shown else ""
        )
