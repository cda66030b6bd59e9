"""Heartbeats and progress, as reported by user code."""

import sys
import time

from .plain import dump, encode_any, parse
from .problems import Mismatch

PROGRESS_BYTES_MAX = 8192
BEAT_SPACING_S = 0.1


class Beats:
    """Implements the functions of `qflow.attempt`: heartbeats and progress.

    At most ten are sent per second; the last one held back is sent before a failure.
    """

    current = None  # with concurrent calls: returns the caller's own, or None

    def __init__(self):
        self.channel = None  # during a call
        self.given = ""
        self.unsent = None
        self.next_s = 0.0

    def begin(self, channel, given):
        self.channel = channel
        self.given = given
        self.unsent = None
        self.next_s = 0.0

    def end(self, failed):
        if failed and self.unsent:
            self.channel.beat(self.unsent)
        self.channel = None

    def heartbeat(self, progress=None):
        """Report that the attempt goes on, and its progress: plain JSON of at most 8 KiB."""
        own = self._own()
        if own is not self:
            return own.heartbeat(progress)
        body = self.unsent or b""
        if progress is not None:
            try:
                body = dump(encode_any(progress)).encode("utf-8")
            except Mismatch as problem:
                raise ValueError(problem.text("progress")) from None
            if len(body) > PROGRESS_BYTES_MAX:
                raise ValueError(
                    "progress is %d bytes; at most %d are kept" % (len(body), PROGRESS_BYTES_MAX)
                )
        channel, now_s = self.channel, time.monotonic()
        if channel is None or now_s < self.next_s:
            self.unsent = body
            return None
        self.next_s, self.unsent = now_s + BEAT_SPACING_S, None
        return channel.beat(body)

    def progress(self, default=None):
        """Return the last progress of an earlier attempt, if any reported one; else the default."""
        given = self._own().given
        return parse(given) if given else default

    def _own(self):
        call = None if self.current is None else self.current()
        return self if call is None else call.beats


BEATS = Beats()


class OwnModules:
    """Provides `qflow.attempt` to code that imports it, at no cost for other code."""

    def find_spec(self, name, path=None, target=None):
        if name not in ("qflow", "qflow.attempt"):
            return None
        from _frozen_importlib import ModuleSpec

        if name == "qflow.attempt":
            return ModuleSpec(name, self)
        for finder in sys.meta_path:  # an installed package of that name keeps its other modules
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                return spec
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        if module.__name__ == "qflow.attempt":
            module.heartbeat, module.progress = BEATS.heartbeat, BEATS.progress
