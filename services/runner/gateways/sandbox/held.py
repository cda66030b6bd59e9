"""What all local sandboxes share: the channel to the agent, and its output."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from services.runner.domain.secrets import NO_MASK, Mask
from services.runner.gateways.sandbox.channel import AgentChannel
from services.runner.gateways.sandbox.output import Output
from services.runner.gateways.sandbox.port import (
    Header,
    OnAnswer,
    OnBeat,
    OutputSink,
    Reply,
)
from services.runner.gateways.sandbox.shared import SharedAgent


class HeldAgent:
    """Talks to an agent; subclasses start and end what it runs in."""

    def __init__(self, *, on_fault: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._output = Output(self._loop)
        self._channel = AgentChannel(
            self._loop,
            on_fault=on_fault,
            on_log=self._output.told,
            on_beat=self._output.beaten,
        )
        self._ended: asyncio.Future[int] = self._loop.create_future()

    @property
    def ended(self) -> asyncio.Future[int]:
        """Done once the sandbox has ended, with its exit status."""
        return self._ended

    def alive(self) -> bool:
        """Return whether the sandbox still runs and can reply."""
        return not self._ended.done() and not self._channel.broken

    def request(
        self,
        header: Header,
        body: bytes = b"",
        *,
        reply_bytes_max: int = 1 << 20,
        descriptors_max: int = 0,
    ) -> asyncio.Future[Reply]:
        """Send one frame and return a future of its reply; fails with SandboxDied."""
        answer = self._channel.expect(
            reply_bytes_max=reply_bytes_max, descriptors_max=descriptors_max
        )
        self._channel.send(header, body)
        return answer

    def ask(
        self, header: Header, body: bytes, on_answer: OnAnswer, *, reply_bytes_max: int
    ) -> None:
        """Send one frame and call `on_answer` with its reply or SandboxDied."""
        self._channel.hear(on_answer, reply_bytes_max=reply_bytes_max)
        self._channel.send(header, body)

    def begin_output(
        self,
        sink: OutputSink | None = None,
        on_beat: OnBeat | None = None,
        mask: Mask = NO_MASK,
    ) -> None:
        """Forget earlier output; what follows goes to `sink`, heartbeats to `on_beat`.

        What the mask matches is neither kept nor passed on.
        """
        self._output.begin(sink, on_beat, mask)

    def output_tails(self) -> tuple[str, str]:
        """Return the output since `begin_output`."""
        return self._output.tails()

    def share(self, *, reply_bytes_max: int) -> SharedAgent:
        """Allow several concurrent calls from now on."""
        return SharedAgent(self._channel, self._output, reply_bytes_max=reply_bytes_max)
