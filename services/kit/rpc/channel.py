"""Channels to other services; calls carry this process's token and the remaining deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Self

import grpc

from services.kit import traces
from services.kit.rpc import deadline
from services.kit.rpc.listener import MESSAGE_BYTES_MAX, READ_AHEAD
from services.kit.rpc.tls import Trust, host_of

_UNARY_DEFAULT_S: Final = 10.0
# Well above what servers allow: pings that come too early end the connection.
_KEEPALIVE_S: Final = 45
# How long connecting may take, handshakes included (that is what gRPC's "min reconnect backoff"
# means, not a pause): TCP retransmits a lost packet after one second and after three.
_CONNECT_S: Final = 5
# How long running calls may take to end on a connection with outdated certificates.
_RETIRING_S: Final = 60.0


def open_channel(
    address: str, token: str, *, trust: Trust | None = None, peer: str | None = None
) -> grpc.aio.Channel:
    """Open a channel that sends the token with every call; plain text without `trust`.

    A unix socket is always plain text. With mutual TLS the server must be the service `peer`,
    whatever its address. A unary call without a timeout gets 10 seconds; no call outlives the
    deadline of the incoming call that it serves.
    """
    options: list[tuple[str, Any]] = [
        *READ_AHEAD,
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.keepalive_time_ms", _KEEPALIVE_S * 1000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", _CONNECT_S * 1000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]
    if trust is None or address.startswith("unix:"):
        return _TokenChannel(grpc.aio.insecure_channel(address, options=options), token)
    if trust.pair is not None and peer is not None:
        options.append(("grpc.ssl_target_name_override", host_of(peer)))
    return _TlsChannel(address, token, trust=trust, options=options)


class _TokenChannel(grpc.aio.Channel):
    """Adds metadata and a timeout to every call.

    Not done by interceptors: those pass every message of a stream through a queue of their own.
    """

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self._channel = channel
        self._metadata = (("authorization", f"Bearer {token}"),)

    def _current(self) -> grpc.aio.Channel:
        return self._channel

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:  # noqa: FBT001, FBT002  # the library's signature
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._begin(lambda of: of.unary_unary(*args, **kwargs), _UNARY_DEFAULT_S)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._begin(lambda of: of.unary_stream(*args, **kwargs), None)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._begin(lambda of: of.stream_unary(*args, **kwargs), None)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._begin(lambda of: of.stream_stream(*args, **kwargs), None)

    def _begin(self, make: Callable[[grpc.aio.Channel], Any], default_s: float | None) -> Any:
        made_of = self._current()
        begin = make(made_of)

        def call(*args: Any, timeout: float | None = None, **kwargs: Any) -> Any:
            nonlocal made_of, begin
            channel = self._current()
            if channel is not made_of:
                made_of, begin = channel, make(channel)
            metadata = (*self._metadata, *(kwargs.get("metadata") or ()))
            place = traces.CURRENT.get(None)
            kwargs["metadata"] = metadata if place is None else (*metadata, (traces.KEY, place))
            return begin(*args, timeout=_timeout_s(timeout or default_s), **kwargs)

        return call


class _TlsChannel(_TokenChannel):
    """Reconnects with new credentials when the files have changed.

    An established connection keeps its certificate; only a new one needs a valid one.
    """

    def __init__(
        self, address: str, token: str, *, trust: Trust, options: list[tuple[str, Any]]
    ) -> None:
        self._address = address
        self._trust = trust
        self._options = options
        self._credentials = trust.credentials()
        self._retiring: set[asyncio.Task[None]] = set()
        super().__init__(self._made(), token)

    async def close(self, grace: float | None = None) -> None:
        for task in self._retiring:
            task.cancel()
        await super().close(grace)

    def _current(self) -> grpc.aio.Channel:
        if self._channel.get_state() is not grpc.ChannelConnectivity.READY:
            self._renew()
        return self._channel

    def _renew(self) -> None:
        credentials = self._trust.credentials()
        if credentials is self._credentials:
            return
        self._credentials = credentials
        retiring = asyncio.ensure_future(self._channel.close(_RETIRING_S))
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)
        self._channel = self._made()

    def _made(self) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(self._address, self._credentials, options=self._options)


def _timeout_s(asked_s: float | None) -> float | None:
    left_s = deadline.remaining()
    if left_s is None or asked_s is None:
        return left_s if asked_s is None else asked_s
    return min(asked_s, left_s)
