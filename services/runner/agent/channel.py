"""The channel: frames on a separate descriptor."""

import _struct as struct
import _thread
import os

from .plain import dump, parse
from .problems import Terminated

LOG_FRAME_BYTES = 65536
LOG_FRAME_COST = 64  # limits the number of very short lines
HEAD = struct.Struct("!II")
BEAT = b'{"op":"beat"}'


class Channel:
    """Frames on one blocking descriptor that the rest of the process does not know."""

    def __init__(self, descriptor):
        self.begin_anew(descriptor)

    current = None  # with concurrent calls: returns the caller's own, or None

    def begin_anew(self, descriptor):
        """Switch to another descriptor, perhaps in a fork."""
        self.descriptor = descriptor
        self.pending = bytearray()
        self.missing = 0  # how many bytes of the next frame are still missing
        # Threads of user code may send output while the reply is written.
        self.lock = _thread.allocate_lock()
        self.writer = 0  # the thread that is writing a frame, which must not be interrupted
        self.stopped = False
        self.pid = os.getpid()
        self.room = 0  # how much more output of this call may be sent

    def on_stop(self, number, frame):
        """Handle SIGTERM: stop at once, or after a frame that is being written."""
        if self.writer == _thread.get_ident():
            self.stopped = True
            return
        raise Terminated()

    def read(self):
        """Return the next (header, body); None at the end."""
        while True:
            frame = self.whole()
            if frame is not None:
                return frame
            if not self._more(self.missing):
                return None

    def whole(self):
        """Return the next (header, body) if it has arrived completely; else None."""
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
        """Return whether something arrived that was not read yet."""
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
        """Send output; False if the limit is reached, or in a child of the agent's process."""
        holder = self
        if self.current is not None:
            holder = self.current()
            if holder is None:
                return False  # of no call, or of a thread whose call is unknown
            header = holder.named(header)
        if holder.room <= 0 or os.getpid() != self.pid:
            return False
        holder.room -= len(body) + LOG_FRAME_COST
        self._send(HEAD.pack(len(header), len(body)) + header + body)
        return True

    def beat(self, body, header=BEAT):
        """Send a heartbeat; does nothing in a child of the agent's process."""
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
