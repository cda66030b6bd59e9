"""Where a server listens, and its gRPC options: sizes, connections, pings."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc

from services.kit.env import EnvError
from services.kit.rpc.call import Limits
from services.kit.rpc.tls import ServerTls

MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024
# Bounds what gRPC buffers of a stream before it is read: its own estimate grows to hundreds of MiB
# when the disk or the machine is slow.
READ_AHEAD: Final = (
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", MESSAGE_BYTES_MAX),
)
_METADATA_BYTES_MAX: Final = 16 * 1024
# A thousand watchers of one user, and as many others.
_CONCURRENT_MAX: Final = 2000
# How many streams a connection may have open, and how many calls all connections may have before
# they are authenticated, as multiples of `concurrent_max`. Both are above it, so that a caller over
# the limit is refused with an error instead of waiting for ever.
_STREAMS_FACTOR: Final = 2
UNKNOWN_FACTOR: Final = 4
UNIX_PATH_BYTES_MAX: Final = 107
_CONNECTION_AGE_S: Final = 30 * 60
_PING_INTERVAL_MIN_S: Final = 30
_KEEPALIVE_S: Final = 60
_KEEPALIVE_INTERNAL_S: Final = 10
_KEEPALIVE_TIMEOUT_S: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Where to listen, for whom, and with which limits."""

    address: str  # host:port, or unix:path
    public: bool = True  # False: only for other services, whose streams stay open
    concurrent_max: int = _CONCURRENT_MAX
    calls_per_second_max: int = 0  # per user; 0: unlimited
    limits: Limits = field(default_factory=Limits)
    tls: ServerTls | None = None
    # Whether a service must present its own certificate, besides its token.
    services_prove: bool = False

    @property
    def local(self) -> bool:
        """Whether it is a unix socket, which only processes of the file's owner can connect to."""
        return self.address.startswith("unix:")


def options_of(listener: Listener) -> list[tuple[str, int]]:
    """Return the gRPC options of a server."""
    limits, public = listener.limits, listener.public
    unknown_max = listener.concurrent_max * UNKNOWN_FACTOR
    keepalive_s = _KEEPALIVE_S if public else _KEEPALIVE_INTERNAL_S
    ping_interval_min_s = _PING_INTERVAL_MIN_S if public else _KEEPALIVE_INTERNAL_S / 2
    options = [
        *READ_AHEAD,
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_concurrent_streams", listener.concurrent_max * _STREAMS_FACTOR),
        # Calls queue here while the loop is busy: by default gRPC drops calls at random from a
        # thousand on, and their callers would see CANCELLED, as if they had cancelled.
        ("grpc.server.max_pending_requests", unknown_max),
        ("grpc.server.max_pending_requests_hard_limit", unknown_max * 2),
        ("grpc.max_metadata_size", _METADATA_BYTES_MAX),
        ("grpc.absolute_max_metadata_size", _METADATA_BYTES_MAX),
        ("grpc.so_reuseport", 0),  # a second process on the same port must fail, not share it
        ("grpc.keepalive_time_ms", keepalive_s * 1000),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_S * 1000),
        ("grpc.http2.min_ping_interval_without_data_ms", round(ping_interval_min_s * 1000)),
        ("grpc.http2.max_ping_strikes", 2),
    ]
    if public:
        options += [
            ("grpc.max_connection_age_ms", _CONNECTION_AGE_S * 1000),
            ("grpc.max_connection_age_grace_ms", round(limits.stream_max_s) * 1000),
        ]
    return options


def bind(server: grpc.aio.Server, listener: Listener) -> str:
    """Bind a server and return its address; plain text is only allowed within this machine."""
    address, unix = listener.address, listener.local
    if unix:
        path = Path(address.removeprefix("unix://").removeprefix("unix:"))
        if len(str(path).encode()) > UNIX_PATH_BYTES_MAX:
            raise EnvError(
                f"the socket path {path} is longer than {UNIX_PATH_BYTES_MAX} bytes; "
                "set QFLOW_HOME to a shorter folder"
            )
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            raise EnvError(f"cannot listen on {address}: its folder cannot be created") from None
    try:
        if listener.tls is not None and not unix:
            port = server.add_secure_port(address, listener.tls.credentials())
        elif unix or is_loopback(address):
            port = server.add_insecure_port(address)
        else:
            raise EnvError(
                f"{address} would carry tokens in plain text; listen on 127.0.0.1 or a unix "
                "socket, or set QFLOW_TLS_CERTIFICATE_FILE and QFLOW_TLS_KEY_FILE"
            )
    except RuntimeError:
        raise EnvError(f"cannot listen on {address}: is it in use?") from None
    if unix:
        path.chmod(0o600)
        return address
    return f"{address.rpartition(':')[0]}:{port}"


def is_loopback(address: str) -> bool:
    """Return whether a host:port can only be reached from this machine."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
