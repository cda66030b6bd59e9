"""The streams to orchestrators: one per orchestrator, reconnected whenever one is lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from typing import Any, Final
from uuid import UUID

import structlog

from services.kit.loops import wait_any, wait_either
from services.kit.rpc.tls import Trust
from services.runner.domain.frames import Greeting, Incoming, Machine, Outgoing
from services.runner.domain.limits import Tier
from services.runner.gateways.attach import AttachStream, StreamLost
from services.runner.usecases.desk import Desk
from services.runner.usecases.session import Session

log = structlog.get_logger()

_PAUSE_MIN_S: Final = 0.05
_PAUSE_MAX_S: Final = 2.0
_DRAIN_S: Final = 25.0
_ANSWER_MAX_S: Final = 0.01

Greet = Callable[[], Greeting]


class Streams:
    """Keeps the streams, and closes them all when the runner becomes a new incarnation."""

    def __init__(
        self,
        desk: Desk,
        greet: Greet,
        *,
        joined: asyncio.Event,
        token: str,
        trust: Trust | None = None,
        on_refused: Callable[[], None],
    ) -> None:
        """`on_refused` is called when an orchestrator reports that this incarnation is fenced."""
        self._desk = desk
        self._on_refused = on_refused
        self._joined = joined
        self._greet = greet
        self._token = token
        self._trust = trust
        self._open: dict[AttachStream, None] = {}
        self._over = asyncio.Event()
        self._sessions: dict[str, Session] = {}  # by address, while attached
        self._holding: set[str] = set()
        self._other_names: set[str] = set()  # addresses of already known ones
        self._told = asyncio.Event()  # set when orchestrators report the others' addresses

    async def hold_all(self, addresses: Sequence[str], stop: asyncio.Event) -> None:
        """Hold a stream to each orchestrator: those given, and all that they report."""
        async with asyncio.TaskGroup() as holding:
            for address in addresses:
                self._holding.add(address)
                holding.create_task(self.hold(address, stop))
            while not self._over.is_set():
                await wait_either(self._told, self._over, None)
                self._told.clear()
                for address in sorted(self._peers() - self._holding - self._other_names):
                    log.info("orchestrator_found", orchestrator=address)
                    self._holding.add(address)
                    holding.create_task(self.hold(address, stop, found=True))

    def _peers(self) -> set[str]:
        return {address for each in self._sessions.values() for address in each.peers}

    async def hold(self, address: str, stop: asyncio.Event, *, found: bool = False) -> None:
        """Hold a stream to one orchestrator until the desk is drained.

        An orchestrator that was `found` is given up when it does not answer and no other reports
        it.
        """
        over = asyncio.create_task(self._over.wait())
        pause_s = _PAUSE_MIN_S
        try:
            while not self._over.is_set():
                await wait_either(self._joined, self._over, None)
                attached = await self._hold_once(address, over, found=found)
                if found and (
                    address in self._other_names or (not attached and address not in self._peers())
                ):
                    return
                pause_s = _PAUSE_MIN_S if attached else min(pause_s * 2, _PAUSE_MAX_S)
                if stop.is_set() and not attached:
                    return
                # Jitter: after a restart all runners reconnect, but not all at once.
                wait_s = pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - only spreads load
                await wait_any((self._over,) if stop.is_set() else (self._over, stop), wait_s)
        finally:
            over.cancel()
            self._holding.discard(address)

    async def drain(self, stop: asyncio.Event) -> None:
        """Once stopped: finish the running attempts, then let the streams end."""
        await stop.wait()
        await self._desk.drain(_DRAIN_S)
        self._over.set()

    async def reset(self) -> None:
        """Close every stream; each is reopened with the greeting of the new incarnation."""
        for stream in list(self._open):
            await stream.close()

    async def _hold_once(self, address: str, over: asyncio.Task[Any], *, found: bool) -> bool:
        """Attach and serve until the stream is lost; return whether it was attached at all."""
        stream = AttachStream(address, self._token, trust=self._trust)
        self._open[stream] = None
        session = self._desk.open_session(stream.get_values)
        attached = False
        works: list[asyncio.Task[Any]] = []
        try:
            greeting = self._greet()
            member, epoch = await stream.open(greeting, session.take_outgoing())
            attached = True
            if found and any(each.member == member for each in self._sessions.values()):
                self._other_names.add(address)  # the earlier stream will reconnect
                return True
            session.member = member
            self._sessions[address] = session
            log.info(
                "attached",
                orchestrator=member,
                epoch=epoch,
                incarnation=str(greeting.incarnation),
                lane=stream.by_lane,
            )
            works.append(asyncio.create_task(_Writer(stream, session).write()))
            works.append(asyncio.create_task(self._read(stream, session)))
            await asyncio.wait([*works, over], return_when=asyncio.FIRST_COMPLETED)
            for task in works:
                if task.done():
                    await task
        except StreamLost as lost:
            if str(lost).startswith("FAILED_PRECONDITION"):
                log.warning("attach_refused", orchestrator=address, cause=str(lost)[:200])
                self._on_refused()
            elif attached:
                log.warning("stream_lost", orchestrator=address, cause=str(lost)[:200])
        finally:
            session.say = None
            if self._sessions.get(address) is session:
                del self._sessions[address]
            self._desk.close_session(session)
            del self._open[stream]
            for task in works:
                task.cancel()
            await asyncio.gather(*works, return_exceptions=True)
            with contextlib.suppress(Exception):
                await stream.close()
        return attached

    async def _read(self, stream: AttachStream, session: Session) -> None:
        def take(frame: Incoming) -> None:
            self._desk.take(session, frame)
            session.answered.set()
            if frame.peers is not None:
                session.peers = frame.peers
                self._told.set()

        await stream.listen(take)


class _Writer:
    """Writes everything that is waiting in one batch.

    Results wait until the previous ones are answered: the orchestrator's journal has one flush in
    flight, so they would wait there anyway, and one frame with many results is much cheaper for
    both ends. If the answer arrives before the next result, nothing waits.
    """

    def __init__(self, stream: AttachStream, session: Session) -> None:
        self._stream = stream
        self._session = session
        self._time = asyncio.get_running_loop().time
        self._waits = False  # whether it waits only for something to write
        self._sent_s = 0.0
        session.answered.set()
        session.say = self._write_at_once

    async def write(self) -> None:
        """Write until the stream fails."""
        session = self._session
        while True:
            self._waits = True
            await session.ready.wait()
            self._waits = False
            left_s = self._sent_s + _ANSWER_MAX_S - self._time()
            if left_s > 0 and not session.answered.is_set():
                await wait_any((session.answered,), left_s)
            outgoing = session.take_outgoing()
            self._await_answer(outgoing)
            await self._stream.send(outgoing)

    def _write_at_once(self) -> bool:
        """Write directly if nothing has to be waited for and no order is violated."""
        session = self._session
        if not self._waits or session.ready.is_set() or not session.answered.is_set():
            return False
        if not self._stream.put(session.outgoing):
            return False
        self._await_answer(session.take_outgoing())
        return True

    def _await_answer(self, written: Outgoing) -> None:
        if written.results:
            self._session.answered.clear()
            self._sent_s = self._time()
        else:
            self._session.answered.set()


_ANY_MACHINE: Final = Machine()


def greeting_of(
    desk: Desk,
    incarnation: Callable[[], UUID],
    *,
    slots: int,
    tiers: tuple[Tier, ...],
    pythons: tuple[str, ...],
    machine: Machine = _ANY_MACHINE,
) -> Greet:
    """Return a function that creates the greeting from the current state."""

    def greet() -> Greeting:
        running, finished = desk.inventory()
        return Greeting(
            incarnation=incarnation(),
            slots=slots,
            tiers=tiers,
            pythons=pythons,
            machine=machine,
            running=running,
            finished=finished,
        )

    return greet
