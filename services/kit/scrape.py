"""Metrics for Prometheus: `GET /metrics` on an address of its own, off unless it is set.

Served on the service's loop by plain asyncio: there is only one kind of request, and a web
framework would cost each process ten megabytes. Labels are methods, pools and states, never a
tenant, a person or a run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import structlog

from services.kit import env as settings
from services.kit.figures import Distribution, Figure, Figures

log = structlog.get_logger()

PATH: Final = "/metrics"
_HEAD_BYTES_MAX: Final = 8 * 1024
_PATIENCE_S: Final = 5.0
# A Prometheus server sends one request at a time; a few servers may scrape at once.
_CONNECTIONS_MAX: Final = 8
_GAVE_UP: Final = (TimeoutError, ConnectionError, asyncio.IncompleteReadError)


def address_of(env: Mapping[str, str], service: str) -> str | None:
    """Read where a service is scraped: its own setting, else the common one; None if off."""
    own = settings.optional(env, f"QFLOW_{service.upper()}_METRICS_LISTEN")
    address = own or settings.optional(env, "QFLOW_METRICS_LISTEN")
    if address is not None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:  # noqa: PLR2004  # the highest port
            raise settings.EnvError("QFLOW_METRICS_LISTEN must be host:port")
    return address


@asynccontextmanager
async def scraped(address: str | None, sources: Sequence[Figures]) -> AsyncIterator[str | None]:
    """Serve metrics inside the block; yields the address with the actual port."""
    if address is None:
        yield None
        return
    host, _, port = address.rpartition(":")
    page = _Page(sources)
    try:
        server = await asyncio.start_server(
            page.answer, host.strip("[]"), int(port), limit=_HEAD_BYTES_MAX
        )
    except OSError:
        raise settings.EnvError(f"cannot serve metrics on {address}: is it in use?") from None
    try:
        yield f"{host}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def written(sources: Iterable[Figures], accept: str = "") -> tuple[bytes, str]:
    """Encode all metrics as the scraper accepts them; return the text and its content type.

    They are read at once, on the loop, and encoded in a thread: for a hundred methods that takes
    tens of milliseconds, which would delay calls.
    """
    return await asyncio.to_thread(_encoded, list(_families(sources)), accept)


def _encoded(families: Sequence[Any], accept: str) -> tuple[bytes, str]:
    # Imported late: a process that is not scraped does not pay for the library.
    from prometheus_client import CollectorRegistry, ProcessCollector
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(_Read(families))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Read:
    """The values read, as a collector of the library."""

    def __init__(self, families: Sequence[Any]) -> None:
        self._families = families

    def collect(self) -> Sequence[Any]:
        return self._families


def _families(sources: Iterable[Figures]) -> Iterable[Any]:
    """Convert metrics for the library; several sources may contribute to one name."""
    families: dict[str, Any] = {}
    for source in sources:
        for figure in source():
            family = families.get(figure.name)
            if family is None:
                family = families[figure.name] = _family(figure)
            for labels, value in figure.values:
                if isinstance(value, Distribution):
                    buckets = [(_bound(bound), n) for bound, n in value.cumulated()]
                    family.add_metric(labels, buckets=buckets, sum_value=value.total)
                else:
                    family.add_metric(labels, value)
    return families.values()


def _family(figure: Figure) -> Any:
    from prometheus_client import core

    made = {
        "counter": core.CounterMetricFamily,
        "gauge": core.GaugeMetricFamily,
        "histogram": core.HistogramMetricFamily,
    }[figure.kind]
    return made(figure.name, figure.help, labels=figure.labels)


def _bound(bound: float) -> str:
    return "+Inf" if bound == float("inf") else repr(float(bound))


class _Page:
    """Handles connections: one request, one response, then it is closed."""

    def __init__(self, sources: Sequence[Figures]) -> None:
        self._sources = sources
        self._open = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            async with asyncio.timeout(_PATIENCE_S):
                if self._open <= _CONNECTIONS_MAX:
                    writer.write(await self._made(await _head(reader)))
                    await writer.drain()
        except _GAVE_UP:
            pass
        finally:
            self._open -= 1
            writer.close()
            with suppress(*_GAVE_UP):
                await writer.wait_closed()

    async def _made(self, head: str | None) -> bytes:
        if head is None:
            return _response("431 Request Header Fields Too Large")
        request, *lines = head.split("\r\n")
        method, _, rest = request.partition(" ")
        if method != "GET":
            return _response("405 Method Not Allowed", "Allow: GET\r\n")
        if rest.split(" ", 1)[0].split("?", 1)[0] != PATH:
            return _response("404 Not Found")
        fields = (line.partition(":") for line in lines)
        accept = next((value for name, _, value in fields if name.lower() == "accept"), "")
        try:
            body, content_type = await written(self._sources, accept.strip())
        except Exception:
            # A metric that cannot be read must not stop the service.
            log.exception("scrape_failed")
            return _response("500 Internal Server Error")
        return _response("200 OK", f"Content-Type: {content_type}\r\n", body)


async def _head(reader: asyncio.StreamReader) -> str | None:
    """Read a request up to its empty line; None if it is too long."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        return None
    return head.decode("latin-1")


def _response(status: str, fields: str = "", body: bytes = b"") -> bytes:
    head = f"HTTP/1.1 {status}\r\n{fields}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode("latin-1") + body
