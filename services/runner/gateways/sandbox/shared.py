"""Several concurrent calls of one agent, distinguished by numbers."""

from __future__ import annotations

import asyncio
import itertools

from services.runner.domain.node_logs import Stream
from services.runner.domain.secrets import NO_MASK, Mask
from services.runner.gateways.sandbox.channel import (
    LOG_BYTES_MAX,
    LOG_FRAMES_MAX,
    AgentChannel,
    beats_allowed,
)
from services.runner.gateways.sandbox.output import Output, Tail
from services.runner.gateways.sandbox.port import Header, OnBeat, OutputSink, Reply, SandboxDied


class SharedAgent:
    """The running calls in one sandbox.

    Output that bypasses Python's own streams, from a library or a child process, names no call: it
    counts as the oldest call's.
    """

    def __init__(self, channel: AgentChannel, output: Output, *, reply_bytes_max: int) -> None:
        self._channel = channel
        self._output = output
        self._numbers = itertools.count(1)
        self._calls: dict[int, SharedCall] = {}  # oldest first
        output.begin(self)
        channel.share(self, reply_bytes_max=reply_bytes_max)

    def begin(self) -> SharedCall:
        """Begin one more call."""
        call = SharedCall(self, next(self._numbers))
        call.met = bool(self._calls)
        for other in self._calls.values():
            other.met = True
        self._calls[call.number] = call
        return call

    def end(self, call: SharedCall) -> None:
        """Remove a call."""
        self._calls.pop(call.number, None)

    def send(self, header: Header, body: bytes = b"") -> None:
        """Send one frame."""
        self._channel.send(header, body)

    def broken(self) -> bool:
        """Return whether no reply can come any more."""
        return self._channel.broken

    def drain(self) -> None:
        """Read what is in the pipes."""
        self._output.tails()

    def take(self, header: Header, body: bytes) -> str:
        """Process one frame; return what is wrong with it, or ""."""
        match header:
            case {"op": "result", "id": int(number)} if number in self._calls:
                self._calls.pop(number).take_answer(Reply(header=header, body=body))
                return ""
            case {"op": "log" | "beat" as op, "c": int(number)} if number in self._calls:
                call = self._calls[number]
                return call.take_beat(body) if op == "beat" else call.take_log(header, body)
            case {"op": "log" | "beat"}:
                return ""  # of a call that is over: nobody's
        return "the agent answered a call that it was not asked for"

    def failed(self, died: SandboxDied) -> None:
        """Fail all calls: no reply will come."""
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.fail(died)

    def printed(self, stream: Stream, piece: bytes) -> None:
        """Process output written to a pipe."""
        oldest = next(iter(self._calls.values()), None)
        if oldest is not None:
            oldest.take_printed(stream, piece)

    def recorded(self, level: int, logger: str, text: str) -> None:
        """Do nothing: records of `logging` name their call, so none arrives here."""


class SharedCall:
    """One of several calls."""

    def __init__(self, agent: SharedAgent, number: int) -> None:
        self.number = number
        self.met = False
        self._agent = agent
        self._loop = asyncio.get_running_loop()
        self._began_s = self._loop.time()
        self._answered: asyncio.Future[Reply] = self._loop.create_future()
        self._tails = {Stream.STDOUT: Tail(), Stream.STDERR: Tail()}
        self._sink: OutputSink | None = None
        self._on_beat: OnBeat | None = None
        self._log_frames = 0
        self._beats = 0
        self._is_sent = False
        self._is_cancelled = False

    @property
    def answered(self) -> asyncio.Future[Reply]:
        """Done once there is a reply, or none will come."""
        return self._answered

    def begin_output(
        self,
        sink: OutputSink | None = None,
        on_beat: OnBeat | None = None,
        mask: Mask = NO_MASK,
    ) -> None:
        """Send this call's output to `sink`, and its heartbeats to `on_beat`."""
        assert not mask, "a call with secrets has a process of its own"
        self._sink, self._on_beat = sink, on_beat

    def output_tails(self) -> tuple[str, str]:
        """Return the ends of this call's output."""
        return self._tails[Stream.STDOUT].text(), self._tails[Stream.STDERR].text()

    async def request(
        self,
        header: Header,
        body: bytes = b"",
        *,
        reply_bytes_max: int = 1 << 20,
        descriptors_max: int = 0,
    ) -> Reply:
        """Send the call and await its reply, which has no open files; raises SandboxDied."""
        del reply_bytes_max, descriptors_max  # the agent has its own limit, and there are no files
        if self._agent.broken():
            self._agent.end(self)
            raise SandboxDied("the sandbox has ended")
        self._agent.send({**header, "id": self.number}, body)
        self._is_sent = True
        if self._is_cancelled:
            self.cancel()
        try:
            reply = await self._answered
        finally:
            self._agent.end(self)
        return reply._replace(header={**reply.header, "id": header.get("id")})

    def cancel(self) -> None:
        """Cancel the call's task in the agent; the call still gets a reply."""
        self._is_cancelled = True
        if self._is_sent:
            self._agent.send({"op": "cancel", "id": self.number})

    def take_answer(self, reply: Reply) -> None:
        """Process the reply."""
        self._agent.drain()
        if not self._answered.done():
            self._answered.set_result(reply)

    def fail(self, died: SandboxDied) -> None:
        """Fail the call."""
        if not self._answered.done():
            self._answered.set_exception(died)
            self._answered.exception()  # marks it as retrieved: the caller may be gone

    def take_printed(self, stream: Stream, piece: bytes) -> None:
        """Process output written to stdout or stderr."""
        self._tails[stream].take(piece)
        if self._sink is not None:
            self._sink.printed(stream, piece)

    def take_log(self, header: Header, body: bytes) -> str:
        """Process output that the agent sends; return what is wrong with the frame, or ""."""
        self._log_frames += 1
        if self._log_frames > LOG_FRAMES_MAX or len(body) > LOG_BYTES_MAX:
            return "the agent told more than allowed"
        match header:
            case {"s": 1}:
                self.take_printed(Stream.STDOUT, body)
            case {"s": 2}:
                self.take_printed(Stream.STDERR, body)
            case {"level": int(level), "name": str(name)} if self._sink is not None:
                self._sink.recorded(level, name, body.decode("utf-8", "replace"))
        return ""

    def take_beat(self, body: bytes) -> str:
        """Process a heartbeat; return what is wrong with it, or ""."""
        self._beats += 1
        if self._beats > beats_allowed(self._loop.time() - self._began_s):
            return "the agent told of more heartbeats than allowed"
        if self._on_beat is not None:
            self._on_beat(body)
        return ""
