"""Posting events to addresses that others chose, by a client that is read when it is needed."""

from __future__ import annotations

import asyncio
import importlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from services.orchestrator.gateways.http_client import HttpClient

TIMEOUT_S: Final = 10.0
_CLIENT: Final = "services.orchestrator.gateways.http_client"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: a status, or 0 and why there is none; and when to come again, if it said."""

    status: int
    error: str = ""
    retry_after: str = ""


class Poster(Protocol):
    """Posts a body to an address."""

    async def post(self, url: str, body: str, headers: Mapping[str, str]) -> Answer:
        """Post, and say what came back; never raises for what the other side does."""
        ...


class Resolve(Protocol):
    """Gives the addresses of a host."""

    async def __call__(self, host: str, port: int) -> list[str]:
        """Resolve a name."""
        ...


async def resolve(host: str, port: int) -> list[str]:
    """Ask the system's resolver."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Webhooks:
    """Posts over HTTPS to public addresses alone.

    To read the client takes a quarter of what the whole service takes: most have no subscriptions,
    and a start is not to wait for it.
    """

    def __init__(
        self, *, loopback: bool, resolver: Resolve = resolve, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._loopback = loopback
        self._resolver = resolver
        self._timeout_s = timeout_s
        self._client: HttpClient | None = None

    async def post(self, url: str, body: str, headers: Mapping[str, str]) -> Answer:
        """Post a body of JSON."""
        module = await asyncio.to_thread(importlib.import_module, _CLIENT)
        if self._client is None:
            self._client = module.HttpClient(
                loopback=self._loopback, resolver=self._resolver, timeout_s=self._timeout_s
            )
        assert self._client is not None
        return await self._client.post(url, body, headers)

    async def close(self) -> None:
        """Let go of connections."""
        if self._client is not None:
            await self._client.close()
