"""A door before a service: passes bytes on, can cut whoever is in it, may ask for certificates."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self

_WAIT_S = 10.0


class Door:
    """Listens on a free port of this machine for one service; use it with `with`."""

    def __init__(self, target: str, tls: ssl.SSLContext | None = None) -> None:
        self.address = ""
        self.entries = 0
        self.cuts = 0
        self._target = target
        self._tls = tls
        self._open: set[asyncio.StreamWriter] = set()
        self._asked = self._answered = 0
        self._news = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        """Open it."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(_WAIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        """Close it, and whatever is in it."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(_WAIT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_WAIT_S)
        self._loop.close()

    def cut_after_an_answer(self) -> None:
        """Wait until something is asked from now on and answered, then end every connection."""
        with self._news:
            asked, answered = self._asked, self._answered
            self._news.wait_for(lambda: self._asked > asked, 1.0)
            self._news.wait_for(lambda: self._answered > answered, 1.0)
        self._loop.call_soon_threadsafe(self._cut)

    def _cut(self) -> None:
        if self._open:
            self.cuts += 1
        for each in tuple(self._open):
            each.transport.abort()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._enter, "127.0.0.1", 0, ssl=self._tls)
        self.address = "127.0.0.1:{1}".format(*self._server.sockets[0].getsockname())

    async def _close(self) -> None:
        self._server.close()
        for each in tuple(self._open):
            each.transport.abort()
        mine = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not mine]
        await asyncio.wait(others, timeout=_WAIT_S) if others else None

    async def _enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.entries += 1
        host, _, port = self._target.rpartition(":")
        behind, ahead = await asyncio.open_connection(host, int(port))
        both = {writer, ahead}
        self._open |= both
        with suppress(OSError):
            await asyncio.gather(
                self._pass(reader, ahead, self._count_asked),
                self._pass(behind, writer, self._count_answered),
            )
        self._open -= both
        for each in both:
            each.transport.abort()

    async def _pass(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, seen: Callable[[], None]
    ) -> None:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
            seen()
        raise ConnectionResetError  # one side is gone: so is the other

    def _count_asked(self) -> None:
        with self._news:
            self._asked += 1
            self._news.notify_all()

    def _count_answered(self) -> None:
        with self._news:
            self._answered += 1
            self._news.notify_all()
