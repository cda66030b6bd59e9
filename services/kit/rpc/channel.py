"""Channels to other services: they carry this process's token and what is left of the deadline."""

from __future__ import annotations

from typing import Any, Final, Self

import grpc

from services.kit import traces
from services.kit.rpc import deadline
from services.kit.rpc.server import MESSAGE_BYTES_MAX

_UNARY_DEFAULT_S: Final = 10.0
# Well above what servers allow: a ping that comes too early ends the connection.
_KEEPALIVE_S: Final = 45


def open_channel(
    address: str, token: str, *, root_certificates: bytes | None = None
) -> grpc.aio.Channel:
    """Open a channel that sends the token with every call; plain text without certificates.

    A unix socket is plain text all the same. A unary call without a timeout gets 10 seconds, and
    no call outlives the one it is made for.
    """
    options = [
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.keepalive_time_ms", _KEEPALIVE_S * 1000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]
    if root_certificates is None or address.startswith("unix:"):
        channel = grpc.aio.insecure_channel(address, options=options)
    else:
        credentials = grpc.ssl_channel_credentials(root_certificates)
        channel = grpc.aio.secure_channel(address, credentials, options=options)
    return _TokenChannel(channel, token)


class _TokenChannel(grpc.aio.Channel):
    """Adds metadata where a call begins.

    Not as interceptors: those pass every message of a stream through a queue of their own.
    """

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self._channel = channel
        self._metadata = (("authorization", f"Bearer {token}"),)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:  # noqa: FBT001, FBT002  # the library's signature
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._begin(self._channel.unary_unary(*args, **kwargs), _UNARY_DEFAULT_S)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._begin(self._channel.unary_stream(*args, **kwargs), None)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._begin(self._channel.stream_unary(*args, **kwargs), None)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._begin(self._channel.stream_stream(*args, **kwargs), None)

    def _begin(self, begin: Any, default_s: float | None) -> Any:
        def call(*args: Any, timeout: float | None = None, **kwargs: Any) -> Any:
            metadata = (*self._metadata, *(kwargs.get("metadata") or ()))
            place = traces.CURRENT.get(None)
            kwargs["metadata"] = metadata if place is None else (*metadata, (traces.KEY, place))
            return begin(*args, timeout=_timeout_s(timeout or default_s), **kwargs)

        return call


def _timeout_s(asked_s: float | None) -> float | None:
    left_s = deadline.remaining()
    if left_s is None or asked_s is None:
        return left_s if asked_s is None else asked_s
    return min(asked_s, left_s)
