"""The output of user code, sent on the channel."""

import io
import os
import sys

from .channel import LOG_FRAME_BYTES
from .plain import dump


class Printed(io.RawIOBase):
    """Sends what Python code prints on the channel, so that streams and records keep their order.

    Above the call's limit, and in processes forked by user code, it writes to the descriptor.
    """

    def __init__(self, channel, descriptor):
        super().__init__()
        self.channel = channel
        self.descriptor = descriptor
        self.header = b'{"op":"log","s":%d}' % descriptor
        self.name = "<stdout>" if descriptor == 1 else "<stderr>"

    def writable(self):
        return True

    def fileno(self):
        return self.descriptor

    def write(self, data):
        piece = bytes(data[:LOG_FRAME_BYTES])
        if not self.channel.tell(self.header, piece):
            return os.write(self.descriptor, data)
        return len(piece)


def open_printed(channel, descriptor):
    # Line-buffered: output of a node is visible while it runs.
    raw = io.BufferedWriter(Printed(channel, descriptor))
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)


class ImportWatch:
    """Calls a function when user code imports a module, at no cost if it does not."""

    def __init__(self, awaited):
        self.awaited = awaited  # functions by name of the module

    def find_spec(self, name, path=None, target=None):
        take = self.awaited.pop(name, None)
        if take is None:
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                break
        else:
            return None
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            take(module)

        spec.loader.exec_module = exec_module
        return spec


class Shown:
    """The node whose source lines are shown in tracebacks."""

    node = None

    def show(self, linecache):
        if self.node is not None:
            self.node.show(linecache)


SHOWN = Shown()


def take_records(logging, channel):
    """Send the root logger's records on the channel, in the format set by `basicConfig`."""

    class Records(logging.Handler):
        def emit(self, record):
            try:
                text = self.format(record)
                header = dump(
                    {"op": "log", "level": int(record.levelno), "name": str(record.name)[:255]}
                )
                body = text.encode("utf-8", "backslashreplace")[:LOG_FRAME_BYTES]
                if not channel.tell(header.encode("utf-8", "backslashreplace"), body):
                    sys.stderr.write(text + "\n")
            except Exception:
                self.handleError(record)

    handler = Records()
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    configure = logging.basicConfig

    def basic_config(**options):
        """Run basicConfig without our handler, or it would do nothing; then adopt its format."""
        root.removeHandler(handler)
        configure(**options)
        for made in list(root.handlers):
            if type(made) is logging.StreamHandler and made.stream in (sys.stdout, sys.stderr):
                root.removeHandler(made)
                handler.setFormatter(made.formatter)
        root.addHandler(handler)

    logging.basicConfig = basic_config


def flush_streams():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            pass


def watch_output(channel):
    """From here on, send what Python code writes on the channel."""
    sys.stdout = sys.__stdout__ = open_printed(channel, 1)
    sys.stderr = sys.__stderr__ = open_printed(channel, 2)
    awaited = {"logging": lambda module: take_records(module, channel), "linecache": SHOWN.show}
    sys.meta_path.insert(0, ImportWatch(awaited))
