"""What user code says of itself: that it goes on, and how far it is."""

import sys
import time

from .plain import dump, encode_any, parse
from .problems import Mismatch

PROGRESS_BYTES_MAX = 8192
BEAT_SPACING_S = 0.1


class Beats:
    """What the functions of `qflow.attempt` do: say that the attempt goes on, and how far it is.

    No more than ten go out in a second; what was said last is told before a failure is.
    """

    current = None  # where several calls are under way: gives the one that is asked from, or None

    def __init__(self):
        self.channel = None  # while a call is under way
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
        """Say that the attempt goes on, and how far it has come: plain JSON of at most 8 KiB."""
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
        """Give what the latest earlier attempt that said so had come to; else the default."""
        given = self._own().given
        return parse(given) if given else default

    def _own(self):
        call = None if self.current is None else self.current()
        return self if call is None else call.beats


BEATS = Beats()


class OwnModules:
    """Gives `qflow.attempt` to code that imports it, at no cost where none does."""

    def find_spec(self, name, path=None, target=None):
        if name not in ("qflow", "qflow.attempt"):
            return None
        from _frozen_importlib import ModuleSpec

        if name == "qflow.attempt":
            return ModuleSpec(name, self)
        for finder in sys.meta_path:  # a distribution of that name keeps its other modules
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                return spec
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        if module.__name__ == "qflow.attempt":
            module.heartbeat, module.progress = BEATS.heartbeat, BEATS.progress
