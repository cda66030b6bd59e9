"""The wire between runners and orchestrators: real frames, in order, late, until it breaks.

A call stands in for the library's on both ends: the runner's gateway writes to it and reads from
it, and the orchestrator's servicer is driven by it as the server drives it.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from services.kit.errors import FailedPrecondition, QflowError
from services.orchestrator.rpc.attach import AttachServicer

LATENCY_S = 0.002
UNREACHED_S = 0.2


class Network:
    """All addresses, who listens there, and the calls that are open."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.servers: dict[str, AttachServicer] = {}
        self.calls: list[Call] = []
        self.cut: set[str] = set()  # addresses and runners that nothing reaches
        self.doubling = 0.0  # share of a runner's frames that arrive twice
        self.hit: dict[str, int] = {}
        self.observers: list[Callable[[Any], None]] = []

    def stub(self, channel: Channel) -> Channel:
        """Give what has the calls of a channel: the channel itself."""
        return channel

    def end(self, match: Callable[[Call], bool]) -> int:
        """Break all calls that match."""
        broken = [call for call in self.calls if match(call)]
        for call in broken:
            call.break_off()
        return len(broken)


class Channel:
    """A runner's connection to one address."""

    def __init__(self, network: Network, address: str, token: str) -> None:
        self._network = network
        self._address = address
        self._token = token  # which runner process it is
        self._call: Call | None = None

    def Attach(self) -> Call:  # noqa: N802  # the contract's name
        self._call = Call(self._network, self._address, self._token)
        return self._call

    async def close(self) -> None:
        if self._call is not None:
            self._call.cancel()


class Line:
    """One way of a call: frames that have arrived, and whoever waits for them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.frames: deque[Any] = deque()
        self._loop = loop
        self._waiting: asyncio.Future[None] | None = None

    def moves(self) -> asyncio.Future[None]:
        """Give what is done with the next thing that happens here; one alone waits for it."""
        self._waiting = self._loop.create_future()
        return self._waiting

    def move(self) -> None:
        """Wake whoever waits: a frame is there, or the call is over."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


class Call:
    """One Attach call with both its ends."""

    def __init__(self, network: Network, address: str, runner: str) -> None:
        self.address = address
        self.runner = runner
        self.silent = False  # frames vanish, and nobody is told
        self._network = network
        self._loop = asyncio.get_running_loop()
        self._up = Line(self._loop)
        self._down = Line(self._loop)
        self._due_up = self._due_down = 0.0
        self._status: tuple[grpc.StatusCode, str] | None = None
        self._serving: asyncio.Task[None] | None = None
        network.calls.append(self)
        servicer = network.servers.get(address)
        self.servicer = servicer
        if servicer is None or not network.cut.isdisjoint((address, runner)):
            # A host that is away answers nothing: it takes the library a while to say so.
            self._loop.call_later(UNREACHED_S, self._finish, grpc.StatusCode.UNAVAILABLE, "away")
        else:
            self._serving = self._loop.create_task(self._serve(servicer))

    # --- the runner's end -----------------------------------------------------------------------

    async def write(self, frame: Any) -> None:
        self._check()
        copied = type(frame)()
        copied.CopyFrom(frame)
        self._due_up = self._send(self._due_up, self._arrive_up, copied)
        if self._network.doubling and self._network.chance.random() < self._network.doubling:
            again = type(frame)()
            again.results.extend(frame.results)
            again.declines.extend(frame.declines)
            if again.results or again.declines:
                self._count("frame doubled")
                late = self._due_up + self._network.chance.random() * 0.3
                self._loop.call_at(late, self._arrive_up, again)

    async def read(self) -> Any:
        while not self._down.frames and self._status is None:
            await self._down.moves()
        return self._down.frames.popleft() if self._down.frames else grpc.aio.EOF

    async def code(self) -> grpc.StatusCode:
        assert self._status is not None
        return self._status[0]

    async def details(self) -> str:
        assert self._status is not None
        return self._status[1]

    def cancel(self) -> bool:
        self.break_off(grpc.StatusCode.CANCELLED)
        return True

    # --- the orchestrator's end -----------------------------------------------------------------

    async def _serve(self, servicer: AttachServicer) -> None:
        code, details = grpc.StatusCode.OK, ""
        answers = servicer.Attach(self._requests(), None)  # type: ignore[arg-type]
        try:
            async for frame in answers:
                self._due_down = self._send(self._due_down, self._arrive_down, frame)
        except FailedPrecondition as error:
            code, details = grpc.StatusCode.FAILED_PRECONDITION, error.reason
        except (QflowError, OSError) as error:
            code, details = grpc.StatusCode.UNAVAILABLE, repr(error)
        finally:
            await answers.aclose()  # type: ignore[attr-defined]
        late_s = max(self._due_down, self._loop.time()) + 0.0001
        self._loop.call_at(late_s, self._finish, code, details)

    async def _requests(self) -> AsyncIterator[Any]:
        while True:
            while not self._up.frames:
                await self._up.moves()
            yield self._up.frames.popleft()

    # --- between them ---------------------------------------------------------------------------

    def break_off(self, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        """Lose the connection with all that is on its way."""
        if self._status is None:
            self._down.frames.clear()
            self._finish(code, "the connection broke")
        if self._serving is not None and not self._serving.done():
            self._serving.cancel()

    def _send(self, due: float, arrive: Callable[[Any], None], frame: Any) -> float:
        now = self._loop.time()
        due = max(due, now) + self._network.chance.random() * LATENCY_S
        self._loop.call_at(due, arrive, frame)
        return due

    def _arrive_up(self, frame: Any) -> None:
        if self._status is None and not self.silent:
            self._up.frames.append(frame)
            self._up.move()

    def _arrive_down(self, frame: Any) -> None:
        if self._status is None and not self.silent:
            for observer in self._network.observers:
                observer(frame)
            self._down.frames.append(frame)
            self._down.move()

    def _finish(self, code: grpc.StatusCode, details: str) -> None:
        if self._status is None:
            self._status = (code, details)
            self._down.move()
            self._network.calls.remove(self)

    def _check(self) -> None:
        if self._status is not None:
            code, details = self._status
            raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)

    def _count(self, name: str) -> None:
        self._network.hit[name] = self._network.hit.get(name, 0) + 1
