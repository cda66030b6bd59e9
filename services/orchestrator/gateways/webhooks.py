"""Posts events to subscribers, with an HTTP client that is imported on first use."""

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
    """A response: its status, or 0 and an error if there was none; and its Retry-After, if any."""

    status: int
    error: str = ""
    retry_after: str = ""


class Poster(Protocol):
    """Posts a body to a URL."""

    async def post(self, url: str, body: str, headers: Mapping[str, str]) -> Answer:
        """Post and return the answer; never raises because of the receiver."""
        ...


class Resolve(Protocol):
    """Returns the addresses of a host."""

    async def __call__(self, host: str, port: int) -> list[str]:
        """Resolve a name."""
        ...


async def resolve(host: str, port: int) -> list[str]:
    """Resolve a name with the system's resolver."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Webhooks:
    """Posts over HTTPS to public addresses only.

    Importing the client takes a quarter of the service's start-up time, and most deployments have
    no subscriptions: it is imported on first use.
    """

    def __init__(
        self, *, loopback: bool, resolver: Resolve = resolve, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._loopback = loopback
        self._resolver = resolver
        self._timeout_s = timeout_s
        self._client: HttpClient | None = None

    async def post(self, url: str, body: str, headers: Mapping[str, str]) -> Answer:
        """Post a JSON body."""
        module = await asyncio.to_thread(importlib.import_module, _CLIENT)
        if self._client is None:
            self._client = module.HttpClient(
                loopback=self._loopback, resolver=self._resolver, timeout_s=self._timeout_s
            )
        assert self._client is not None
        return await self._client.post(url, body, headers)

    async def close(self) -> None:
        """Close all connections."""
        if self._client is not None:
            await self._client.close()
