"""An HTTP client for user-supplied URLs that is safe against server-side request forgery.

Names are resolved here, every address is checked, and only checked addresses are connected to, so
that DNS rebinding has no effect. Redirects are not followed, no proxy is taken from the
environment, and only the head of a response is read.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from services.kit.web_address import (
    Refused,
    check_address,
    check_url,
    literal_address,
)
from services.orchestrator.gateways.webhooks import Answer, Resolve

_CONNECTIONS_MAX: Final = 32


class HttpClient:
    """Posts over HTTPS to public addresses only."""

    def __init__(self, *, loopback: bool, resolver: Resolve, timeout_s: float) -> None:
        self._loopback = loopback
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._resolver = _Checked(resolver, loopback=loopback)
        self._session: aiohttp.ClientSession | None = None

    async def post(self, url: str, body: str, headers: Mapping[str, str]) -> Answer:
        """Post a JSON body; returns an `Answer` with status 0 if there was no response."""
        try:
            # Checked when the subscription was made, too, but settings may have changed since.
            check_url(url, loopback=self._loopback)
            literal = literal_address(urlsplit(url).hostname or "")
            if literal is not None:
                check_address(literal, loopback=self._loopback)
            async with self._opened().post(
                url,
                data=body.encode(),
                headers={**headers, "content-type": "application/json", "user-agent": "qflow"},
                allow_redirects=False,
                timeout=self._timeout,
            ) as response:
                said = response.headers.get("retry-after", "")
                return Answer(response.status, retry_after=said)
        except Refused as refused:
            return Answer(0, f"not called: {refused}")
        except TimeoutError:
            return Answer(0, "no answer in time")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            why = _refusal(error)
            return Answer(0, f"not called: {why}" if why else _said(error))

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                resolver=self._resolver,
                use_dns_cache=False,
                limit=_CONNECTIONS_MAX,
                force_close=True,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                trust_env=False,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


class _Checked(AbstractResolver):
    """Resolves names; refuses a name if any of its addresses may not be called."""

    def __init__(self, inner: Resolve, *, loopback: bool) -> None:
        self._inner = inner
        self._loopback = loopback

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002  # aiohttp's interface
    ) -> list[ResolveResult]:
        found: list[ResolveResult] = []
        for text in await self._inner(host, port):
            address = literal_address(text)
            if address is None:
                raise _RefusedNameError("its name stands for no address")
            try:
                check_address(address, loopback=self._loopback)
            except Refused as refused:
                raise _RefusedNameError(str(refused)) from None
            found.append(
                ResolveResult(
                    hostname=host,
                    host=str(address),
                    port=port,
                    family=socket.AF_INET if address.version == 4 else socket.AF_INET6,  # noqa: PLR2004
                    proto=0,
                    flags=socket.AI_NUMERICHOST,
                )
            )
        return found

    async def close(self) -> None:
        pass


class _RefusedNameError(OSError):
    """A name resolved to an address that may not be called."""


def _refusal(error: BaseException) -> str:
    """Return the message of a `_RefusedNameError` among the causes of an error, if there is one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, _RefusedNameError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return ""


def _said(error: BaseException) -> str:
    # Not the text of the error, which may show local addresses.
    match error:
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError():
            return "its certificate is not trusted"
        case aiohttp.ClientConnectorDNSError() | socket.gaierror():
            return "its name is not known"
        case aiohttp.ClientConnectorError() | OSError():
            return "no connection"
        case _:
            return "no HTTP answer"
