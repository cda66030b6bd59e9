"""The channel: frames on a descriptor of their own."""

import _struct as struct
import _thread
import os

from .plain import dump, parse
from .problems import Terminated

LOG_FRAME_BYTES = 65536
LOG_FRAME_COST = 64  # so that lines of a few bytes have an end, too
HEAD = struct.Struct("!II")
BEAT = b'{"op":"beat"}'


class Channel:
    """Frames on one blocking descriptor that no other part of the process is told of."""

    def __init__(self, descriptor):
        self.begin_anew(descriptor)

    current = None  # where several calls are under way: gives the one that is asked from, or None

    def begin_anew(self, descriptor):
        """Speak on another descriptor, in a process that may be another: a fork's."""
        self.descriptor = descriptor
        self.pending = bytearray()
        self.missing = 0  # what the next frame is known to lack
        # Threads of user code tell what they print while the answer is written.
        self.lock = _thread.allocate_lock()
        self.writer = 0  # the thread within a frame, which must not be left half written
        self.stopped = False
        self.pid = os.getpid()
        self.room = 0  # how much more of this call's output may be told

    def on_stop(self, number, frame):
        """SIGTERM: at once, but for a frame that is being written."""
        if self.writer == _thread.get_ident():
            self.stopped = True
            return
        raise Terminated()

    def read(self):
        """The next (header, body), or None at the end."""
        while True:
            frame = self.whole()
            if frame is not None:
                return frame
            if not self._more(self.missing):
                return None

    def whole(self):
        """The next (header, body) where it has come whole, else None."""
        self.missing = 0
        if len(self.pending) < 8:
            return None
        header_length, body_length = HEAD.unpack_from(self.pending)
        total = 8 + header_length + body_length
        if len(self.pending) < total:
            self.missing = total - len(self.pending)
            return None
        header = parse(self.pending[8 : 8 + header_length].decode("utf-8"))
        body = bytes(self.pending[8 + header_length : total])
        del self.pending[:total]
        return header, body

    def waiting(self):
        """Whether something has come that was not read yet."""
        import select

        return bool(self.pending or select.select([self.descriptor], [], [], 0)[0])

    def _more(self, wanted=0):
        chunk = os.read(self.descriptor, max(65536, min(wanted, 1 << 20)))
        self.pending += chunk
        return bool(chunk)

    def write(self, header):
        self.write_text(dump(header))

    def write_text(self, header, parts=(), descriptors=()):
        head = header.encode("utf-8")
        body = b"".join(parts)
        self._send(HEAD.pack(len(head), len(body)) + head + body, descriptors)

    def tell(self, header, body):
        """Tell of output; False when there is no room, or this is a child of the agent's process."""
        holder = self
        if self.current is not None:
            holder = self.current()
            if holder is None:
                return False  # of no call, or of a thread that does not know of which
            header = holder.named(header)
        if holder.room <= 0 or os.getpid() != self.pid:
            return False
        holder.room -= len(body) + LOG_FRAME_COST
        self._send(HEAD.pack(len(header), len(body)) + header + body)
        return True

    def beat(self, body, header=BEAT):
        """Tell that the call goes on; nothing from a child of the agent's process."""
        if os.getpid() == self.pid:
            self._send(HEAD.pack(len(header), len(body)) + header + body)

    def _send(self, data, descriptors=()):
        with self.lock:
            self.writer = _thread.get_ident()
            try:
                if descriptors:
                    data = data[self._send_with(data, descriptors) :]
                self._write_all(data)
            finally:
                self.writer = 0
        if self.stopped:
            self.stopped = False
            raise Terminated()

    def _send_with(self, data, descriptors):
        import array
        import socket

        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
        with socket.socket(fileno=os.dup(self.descriptor)) as channel:
            return channel.sendmsg([data], [rights])

    def _write_all(self, data):
        written = os.write(self.descriptor, data)
        while written < len(data):
            data = memoryview(data)[written:]
            written = os.write(self.descriptor, data)
