"""The agent's start: its channel, its mode, and its end."""

import _signal
import _struct as struct
import fcntl
import os
import sys

from .agent import Agent
from .beats import OwnModules
from .channel import Channel
from .meter import Meter
from .printed import flush_streams, watch_output
from .problems import Terminated, on_terminate
from .user_code import FILENAME


class Own:
    """The agent's own code, read while it is accessible."""

    file = b""


def enter(place):
    """Receive the channel and both outputs through a gate, if descriptors are not inherited."""
    import _socket

    gate = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    gate.connect(place)
    _, given, _, _ = gate.recvmsg(1, _socket.CMSG_LEN(12))
    gate.close()
    channel, stdout, stderr = struct.unpack("=3i", given[0][2])
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.close(stdout)
    os.close(stderr)
    return channel


def main():
    sys.meta_path.insert(0, OwnModules())
    if len(sys.argv) == 3:  # a single call, stored in a file
        from .once import serve_once

        _signal.signal(_signal.SIGTERM, on_terminate)
        frames = Channel(int(sys.argv[1]))
        spec, (header, body) = frames.read()[0], frames.read()
        os.close(frames.descriptor)
        writing = int(sys.argv[2])
        del sys.argv[1:]
        sys.argv[0] = FILENAME
        channel = Channel(writing)
        watch_output(channel)
        serve_once(channel, writing, spec, header, body)
    with open(sys.argv[0], "rb") as file:
        Own.file = file.read()
    given = int(sys.argv[1]) if sys.argv[1].isdigit() else enter(sys.argv[1])
    # A high number, out of reach of code that closes low ones, and closed on exec.
    descriptor = fcntl.fcntl(given, fcntl.F_DUPFD_CLOEXEC, 200)
    os.close(given)
    del sys.argv[1:]
    sys.argv[0] = FILENAME
    channel = Channel(descriptor)
    # Opened while still permitted; without it, memory peaks of earlier calls are included.
    try:
        clear_refs = fcntl.fcntl(
            os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC), fcntl.F_DUPFD_CLOEXEC, 200
        )
    except OSError:
        clear_refs = -1

    _signal.signal(_signal.SIGTERM, channel.on_stop)
    watch_output(channel)
    try:
        Agent(channel, Meter(clear_refs)).serve()
    except Terminated:
        pass
    # Threads left by user code must not keep the sandbox alive.
    flush_streams()
    os._exit(0)
