"""Connections to the four services, opened on first use; adds the token, converts errors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import resources
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc

from qflow.client.contexts import Context, Tls
from qflow.errors import CallError, from_rpc
from qflow.exceptions import ConfigurationError

Answer = TypeVar("Answer")

CALL_S: Final = 60.0
_MESSAGE_BYTES_MAX: Final = 16 * 1024 * 1024
# A vanished peer is noticed within 80 s, even by an idle watch. Servers allow one ping per 30 s.
_KEEPALIVE: Final = (
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
)
# Limits what a stream receives before it is read: gRPC's own estimate grows to hundreds of MiB if
# the disk or the machine is slow.
_AHEAD: Final = (
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 4 * 1024 * 1024),
)


class Connection:
    """The channels of one context, closed with `close`."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._stubs: dict[tuple[str, Any], Any] = {}
        self._metadata = _metadata(context)

    def channel(self, service: str) -> grpc.aio.Channel:
        """Return the channel of a service, for use with any stub."""
        if service not in self._channels:
            self._channels[service] = _open(self.context.address(service), self.context.tls)
        return self._channels[service]

    def stub(self, service: str, make: Callable[[grpc.aio.Channel], Any]) -> Any:
        """Return a generated stub on the channel of its service."""
        key = (service, make)
        if key not in self._stubs:
            self._stubs[key] = make(self.channel(service))
        return self._stubs[key]

    async def call(
        self,
        method: Callable[..., Awaitable[Answer]],
        request: Any,
        *,
        timeout_s: float = CALL_S,
        address: str = "",
    ) -> Answer:
        """Make a unary call; raises exceptions of `qflow.errors`."""
        try:
            return await method(request, metadata=self._metadata, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise self._failed(error, address) from None

    async def pages(
        self, method: Callable[..., Awaitable[Any]], request: Any, field: str, *, address: str = ""
    ) -> AsyncIterator[Any]:
        """Yield the items of a field of all pages of a list."""
        while True:
            page = await self.call(method, request, address=address)
            for each in getattr(page, field):
                yield each
            request.page_token = page.next_page_token
            if not request.page_token:
                return

    async def stream(
        self,
        method: Callable[..., AsyncIterator[Answer]],
        request: Any,
        *,
        timeout_s: float | None = None,
        address: str = "",
    ) -> AsyncIterator[Answer]:
        """Make a streaming call; leaving it early cancels the call."""
        call: Any = method(request, metadata=self._metadata, timeout=timeout_s)
        try:
            async for each in call:
                yield each
        except grpc.aio.AioRpcError as error:
            raise self._failed(error, address) from None
        finally:
            call.cancel()

    def _failed(self, error: grpc.aio.AioRpcError, address: str) -> CallError:
        return from_rpc(error, address=address, encrypted=self.context.tls is not None)

    async def close(self) -> None:
        """Close the channels; open calls are cancelled."""
        channels, self._channels, self._stubs = self._channels, {}, {}
        for each in channels.values():
            await each.close()


def _metadata(context: Context) -> tuple[tuple[str, str], ...]:
    token = (("authorization", f"Bearer {context.token}"),) if context.token else ()
    tenant = (("qflow-tenant", context.tenant),) if context.tenant else ()
    return (*token, *tenant)


def _open(address: str, tls: Tls | None) -> grpc.aio.Channel:
    options = [
        ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
        ("grpc.service_config", service_config()),
        *_KEEPALIVE,
        *_AHEAD,
    ]
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    authorities = _file(tls.ca_file)
    if authorities is not None and b"-----BEGIN CERTIFICATE-----" not in authorities:
        raise ConfigurationError(
            f"{tls.ca_file} holds no certificate: name the file (PEM) of the authority to trust"
        )
    credentials = grpc.ssl_channel_credentials(
        root_certificates=authorities,
        private_key=_file(tls.key_file),
        certificate_chain=_file(tls.certificate_file),
    )
    return grpc.aio.secure_channel(address, credentials, options=options)


def _file(path: str) -> bytes | None:
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None


def service_config() -> str:
    """Return the published gRPC service config: which calls are retried, and how."""
    return resources.files("qflow").joinpath("service_config.json").read_text("utf-8")
