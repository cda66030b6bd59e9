"""Calls in separate processes, as seen by their parent."""

import _signal
import _struct as struct
import os
import sys
import time

from .beats import BEAT_SPACING_S, PROGRESS_BYTES_MAX
from .carried import FILES_MAX
from .channel import HEAD, LOG_FRAME_BYTES, Channel
from .errors import plain_error
from .main import Own
from .plain import dump
from .problems import Mismatch, on_terminate


class Apart:
    """One call in a child process: forked from this one, or newly started."""

    def __init__(self, spec, header, body, program, call_once):
        self.spec = spec
        self.header = header
        self.body = body
        self.program = program
        self.call_once = call_once
        self.child = 0
        self.killed = False

    def result(self, channel):
        """Return the reply's header, its body and open files; output is relayed as it comes."""
        import _socket

        began = time.perf_counter_ns()
        pair = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
        reading, writing = pair[0].detach(), pair[1].detach()
        channel.room = self.header.get("log_room", 0)
        self.child = self._fork(channel, reading, writing)
        os.close(writing)
        previous = _signal.signal(_signal.SIGTERM, self._pass_on)
        try:
            reply = self._answer(Answers(reading), channel)
        finally:
            os.close(reading)
            channel.room = 0
            _signal.signal(_signal.SIGTERM, previous)
        try:
            # It may have replied without ending: threads of user code would keep it alive.
            os.kill(self.child, _signal.SIGKILL) if reply is not None else None
        except ProcessLookupError:
            pass
        _, status, used = os.wait4(self.child, 0)
        if reply is not None:
            return reply
        self.killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == _signal.SIGKILL
        if os.WIFSIGNALED(status):
            import signal

            how = "signal %s" % signal.Signals(os.WTERMSIG(status)).name
        else:
            how = "exit status %d" % os.WEXITSTATUS(status)
        usage = {
            "cpu_us": int((used.ru_utime + used.ru_stime) * 1000000),
            "max_rss_kb": used.ru_maxrss,
            "wall_us": (time.perf_counter_ns() - began) // 1000,
            "serialization_us": 0,
        }
        message = "the process ended before it returned (%s)" % how
        return (
            {
                "op": "result",
                "id": self.header["id"],
                "usage": usage,
                "error": plain_error("exited", message),
            },
            b"",
            [],
        )

    def _answer(self, frames, channel):
        """Wait for the reply; relay output, and heartbeats at their minimum interval."""
        next_s, unsent = 0.0, None
        while True:
            reply = read_frame(frames, self.header["output_bytes_max"])
            op = reply[0].get("op") if reply is not None else None
            if op == "log":
                if not relay(channel, reply[0], reply[1]):
                    return frames.refuse()
                continue
            if op != "beat":
                if reply is not None and unsent is not None:
                    channel.beat(unsent)
                return reply
            now_s, unsent = time.monotonic(), reply[1][:PROGRESS_BYTES_MAX]
            if now_s >= next_s:
                channel.beat(unsent)
                next_s, unsent = now_s + BEAT_SPACING_S, None

    def _pass_on(self, number, frame):
        try:
            os.kill(self.child, _signal.SIGTERM)
        except ProcessLookupError:
            pass

    def _fork(self, channel, reading, writing):
        child = os.fork()
        if child:
            return child
        try:
            os.close(channel.descriptor)
            os.close(reading)
            _signal.signal(_signal.SIGTERM, on_terminate)
            if self.spec["apart"] == "fork":
                # The same channel object, to which streams and `logging` write; it now ends at the
                # agent.
                self.call_once(channel, writing, self.spec, self.header, self.body, self.program)
            else:
                self._begin_anew(writing)
        except BaseException:
            pass
        os._exit(1)

    def _begin_anew(self, writing):
        """Exec a new interpreter, which reads this call from an anonymous file."""
        agent = os.memfd_create("agent", 0)
        with os.fdopen(os.dup(agent), "wb") as file:
            file.write(Own.file)
        place = os.memfd_create("call", 0)
        for header, body in ((self.spec, b""), (self.header, self.body)):
            head = dump(header).encode("utf-8")
            with os.fdopen(os.dup(place), "wb") as file:
                file.write(HEAD.pack(len(head), len(body)) + head + body)
        os.lseek(place, 0, os.SEEK_SET)
        os.set_inheritable(agent, True)
        os.set_inheritable(place, True)
        os.set_inheritable(writing, True)
        place_of_agent = "/proc/self/fd/%d" % agent  # its path may be inaccessible for its user
        program = [sys.executable, "-I", "-S", place_of_agent, str(place), str(writing)]
        os.execv(sys.executable, program)


def read_frame(frames, body_bytes_max):
    """Return a child's next frame; None if it is malformed. It is as untrusted as its code."""
    try:
        while len(frames.pending) < 8:
            if not frames._more():
                return frames.refuse()
        header_length, body_length = HEAD.unpack_from(frames.pending)
        if header_length > 256 * 1024 or body_length > body_bytes_max + 4096:
            return frames.refuse()
        header, body = frames.read()
    except (OSError, TypeError, ValueError, Mismatch, RecursionError):
        return frames.refuse()
    return (header, body, frames.descriptors) if type(header) is dict else frames.refuse()


def relay(channel, header, body):
    """Relay output that a child sent to the runner; False if the frame is malformed.

    Output beyond the call's limit is dropped: a child within the limit writes to its descriptors.
    """
    if len(body) > LOG_FRAME_BYTES:
        return False
    if header.get("s") in (1, 2):
        told = {"op": "log", "s": header["s"]}
    else:
        try:
            told = {"op": "log", "level": int(header["level"]), "name": str(header["name"])[:255]}
        except (KeyError, TypeError, ValueError, OverflowError):
            return False
    channel.tell(dump(told).encode("utf-8", "backslashreplace"), body)
    return True


class Answers(Channel):
    """Frames from a child, with open files."""

    def __init__(self, descriptor):
        import _socket

        super().__init__(descriptor)
        self.socket = _socket.socket(fileno=os.dup(descriptor))
        self.room_for = _socket.CMSG_SPACE(4 * FILES_MAX)
        self.descriptors = []

    def waiting(self):
        """Return whether something arrived that was not read yet."""
        import select

        return bool(self.pending or select.select([self.descriptor], [], [], 0)[0])

    def _more(self, wanted=0):
        chunk, given, _, _ = self.socket.recvmsg(max(65536, min(wanted, 1 << 20)), self.room_for)
        for _, _, data in given:
            self.descriptors += [each for (each,) in struct.iter_unpack("=i", data)]
        self.pending += chunk
        return bool(chunk)

    def refuse(self):
        for descriptor in self.descriptors:
            os.close(descriptor)
