"""A gRPC server as every service of the suite runs it: limits, stages, health and reflection."""

from __future__ import annotations

import asyncio
import inspect
import ipaddress
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from grpc_health.v1 import health, health_pb2_grpc
from qflow.auth.v1 import auth_pb2

from services.kit.audit import Recorder
from services.kit.deadlines import Deadlines
from services.kit.env import EnvError
from services.kit.rpc import (
    access_log,
    admission,
    audit,
    auth,
    deadline,
    errors,
    reflection,
    spans,
    unary,
    validate,
)
from services.kit.rpc.auth import Authenticator
from services.kit.rpc.call import Call, Context, Handle, Limits, Method
from services.kit.rpc.fair_share import FairShare
from services.kit.rpc.tally import Calls
from services.kit.rpc.tls import ServerTls
from services.kit.traces import Tracer

MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024
# What of a stream arrives before it is read stays below this: gRPC's own estimate of what to ask
# for grows to hundreds of MiB where the disk or the machine is slow.
READ_AHEAD: Final = (
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", MESSAGE_BYTES_MAX),
)
_METADATA_BYTES_MAX: Final = 16 * 1024
# A thousand watchers of one user, and room beside them.
_CONCURRENT_MAX: Final = 2000
# What one connection may have open: more than a server takes, so that whoever asks for too much is
# told so and does not wait for ever; and all connections together, until callers are known.
_STREAMS_FACTOR: Final = 2
_UNKNOWN_FACTOR: Final = 4
UNIX_PATH_BYTES_MAX: Final = 107
_CONNECTION_AGE_S: Final = 30 * 60
_PING_INTERVAL_MIN_S: Final = 30
_KEEPALIVE_S: Final = 60
_KEEPALIVE_INTERNAL_S: Final = 10
_KEEPALIVE_TIMEOUT_S: Final = 10
_FIRST_WRITE_S: Final = 2
# How long no call must have come before a server that stops is closed, and how long that is awaited.
_QUIET_S: Final = 0.005
_REFUSE_MAX_S: Final = 0.5

# What answers without a token, by full name; nothing is matched by prefix or suffix.
_OPEN: Final = frozenset({health.SERVICE_NAME, reflection.V1, reflection.V1ALPHA})

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Handlers: TypeAlias = "Mapping[str, Handler]"
# The `add_XServicer_to_server` function that the generator wrote, and a servicer for it.
Servicer = tuple[Callable[[Any, Any], None], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Where to listen, and who may be expected there."""

    address: str  # host:port, or unix:path
    public: bool = True  # False: other services alone, whose streams are held open
    concurrent_max: int = _CONCURRENT_MAX
    calls_per_second_max: int = 0  # of one user; 0: as many as they like
    limits: Limits = field(default_factory=Limits)
    tls: ServerTls | None = None
    # A service's token is not enough: its certificate must say the same.
    services_prove: bool = False

    @property
    def local(self) -> bool:
        """Whether it is a unix socket, whose file lets its owner's processes in and nobody else."""
        return self.address.startswith("unix:")


@dataclass(frozen=True, slots=True)
class BoundServer:
    """A server with the address it got."""

    server: grpc.aio.Server
    address: str
    _registering: _Registering

    @property
    def services(self) -> Sequence[str]:
        """Full names of what it serves."""
        return self._registering.services

    async def start(self) -> None:
        """Begin to answer."""
        await self.server.start()

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, tell streams to go elsewhere, give the other calls time to end."""
        ends_at = time.monotonic() + grace_s
        await self._refuse(min(_REFUSE_MAX_S, grace_s))
        stopping = asyncio.ensure_future(self.server.stop(max(0.0, ends_at - time.monotonic())))
        self._registering.streams.end()
        await stopping

    async def _refuse(self, longest_s: float) -> None:
        """Answer new calls that they go elsewhere, until none came for a moment.

        gRPC drops what waits to be looked at when a server stops, and those callers would read
        that they cancelled.
        """
        registering = self._registering
        registering.refuse()
        ends_at, looked_at = time.monotonic() + longest_s, -1
        while looked_at != registering.looked_at and time.monotonic() < ends_at:
            looked_at = registering.looked_at
            await asyncio.sleep(_QUIET_S)


async def open_server(
    listener: Listener,
    servicers: Sequence[Servicer],
    *,
    authenticator: Authenticator,
    health_servicer: health.aio.HealthServicer,
    with_reflection: bool = True,
    calls: Calls | None = None,
    recorder: Recorder | None = None,
    tracer: Tracer | None = None,
) -> BoundServer:
    """Build a server and bind it; it answers once started.

    Refuses plain text anywhere but on the loopback interface and unix sockets, and any RPC whose
    contract does not say who may call it.
    """
    server = grpc.aio.server(
        options=_options(listener),
        maximum_concurrent_rpcs=listener.concurrent_max * _UNKNOWN_FACTOR,
    )
    registering: Any = _Registering(listener, authenticator, calls, recorder, tracer)
    server.add_generic_rpc_handlers((registering,))
    for add_to_server, servicer in servicers:
        add_to_server(servicer, registering)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, registering)
    if with_reflection:
        reflection.add_to_server(registering, registering.services)
    return BoundServer(server, _bind(server, listener), registering)


def _options(listener: Listener) -> list[tuple[str, int]]:
    limits, public = listener.limits, listener.public
    unknown_max = listener.concurrent_max * _UNKNOWN_FACTOR
    keepalive_s = _KEEPALIVE_S if public else _KEEPALIVE_INTERNAL_S
    ping_interval_min_s = _PING_INTERVAL_MIN_S if public else _KEEPALIVE_INTERNAL_S / 2
    options = [
        *READ_AHEAD,
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_concurrent_streams", listener.concurrent_max * _STREAMS_FACTOR),
        # Calls that came while the loop was busy with others: from a thousand on gRPC would drop
        # some by chance, whosever they are, and their callers would read that they cancelled.
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


def _bind(server: grpc.aio.Server, listener: Listener) -> str:
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
            raise EnvError(f"cannot listen on {address}: its folder cannot be made") from None
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
    """Whether a host:port can be reached from this machine alone."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Registering(grpc.GenericRpcHandler):
    """Stands in for the server while servicers are added to it: every handler gets its stages here.

    Not an interceptor: grpc.aio asks those anew on every call, which costs more than all stages
    together, and a handler added behind their back would have none. Here there is no such way.
    """

    def __init__(
        self,
        listener: Listener,
        authenticator: Authenticator,
        calls: Calls | None,
        recorder: Recorder | None,
        tracer: Tracer | None,
    ) -> None:
        self.services: list[str] = []
        self.streams = deadline.OpenStreams()
        self.looked_at = 0  # calls so far
        self._handlers: dict[str, Handler] = {}
        self._refusals: dict[str, Handler] = {}
        self._listener = listener
        self._services_prove = listener.services_prove and not listener.local
        self._authenticator = authenticator
        self._deadlines = Deadlines[asyncio.Task[Any]](asyncio.Task.cancel)
        self._calls = calls
        self._recorder = recorder
        self._tracer = tracer
        self._admission = admission.Admission(listener.concurrent_max)
        self._share = FairShare(
            listener.concurrent_max, calls_per_second_max=listener.calls_per_second_max
        )

    def add_generic_rpc_handlers(self, _handlers: Sequence[Any]) -> None:
        """Do nothing: generated code adds the same handlers by name next."""

    def add_registered_method_handlers(self, service_name: str, handlers: Handlers) -> None:
        """Serve a service of the contract; refuse it when an RPC does not say who may call it."""
        self.services.append(service_name)
        service = descriptor_pool.Default().FindServiceByName(service_name)
        for method in service.methods:
            known = Method(
                name=f"/{service_name}/{method.name}",
                request=method.input_type,
                requests_stream=method.client_streaming,
                responses_stream=method.server_streaming,
                reads=method.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS,
                rule=None if service_name in _OPEN else _rule_of(method),
                changes=audit.changes(method),
                public=self._listener.public,
                limits=self._listener.limits,
            )
            composed = self._stream if known.streams else self._unary
            self._handlers[known.name] = composed(known, handlers[method.name])
            if not known.streams and known.rule is not None:
                self._refusals[known.name] = self._outer(_refused, known)

    def refuse(self) -> None:
        """Answer unary calls from now on that the server stops, but those that ask for its health.

        Streams are taken as before, until they are told to end.
        """
        self._handlers |= self._refusals

    def service(self, details: grpc.HandlerCallDetails) -> Handler | None:
        """Find a handler by its full name: one look for all services."""
        self.looked_at += 1
        return self._handlers.get(details.method)

    def _unary(self, method: Method, handler: Handler) -> Handler:
        assert handler.unary_unary is not None
        assert handler.request_deserializer is not None
        notes = None
        if self._recorder is not None and method.changes:
            notes = audit.Notes(method, self._recorder)
        handle = unary.inner(
            handler.unary_unary,
            handler.request_deserializer,
            method,
            gate=auth.gate(method, self._authenticator, services_prove=self._services_prove),
            room=self._admission.room(method),
            share=self._share if self._listener.public else None,
            notes=notes,
        )
        if self._tracer is not None and method.rule is not None:
            handle = spans.stage(handle, method, self._tracer)
        return self._outer(handle, method)

    def _outer(self, handle: Handle, method: Method) -> Handler:
        tally = None
        if self._calls is not None and method.rule is not None:
            tally = self._calls.of(method)
        return _as_grpc(unary.outer(handle, method, self._deadlines, tally), method, None, None)

    def _stream(self, method: Method, handler: Handler) -> Handler:
        assert handler.request_deserializer is not None
        handle = validate.stage(_servicer(handler), method)
        if self._recorder is not None and method.changes:
            handle = audit.stage(handle, method, self._recorder)
        if self._listener.public:
            handle = self._share.stage(handle)
        handle = self._admission.stage(handle, method)
        handle = auth.stage(
            handle, method, self._authenticator, services_prove=self._services_prove
        )
        handle = deadline.stage(handle, method)
        if method.responses_stream:
            handle = self.streams.stage(handle)
        if method.rule is not None:  # probes of health are too many to be worth a line
            if self._tracer is not None:
                handle = spans.stage(handle, method, self._tracer)
            handle = access_log.stage(handle)
            if self._calls is not None:
                handle = self._calls.stage(handle, method)
        read = validate.reader(handler.request_deserializer)
        return _as_grpc(errors.stage(handle), method, read, handler.response_serializer)


async def _refused(_call: Call, _request: Any) -> bytes:
    raise deadline.draining()


def _rule_of(method: MethodDescriptor) -> auth_pb2.AuthRule:
    rule: auth_pb2.AuthRule = method.GetOptions().Extensions[auth_pb2.rule]
    if not rule.audiences or auth_pb2.AUDIENCE_UNSPECIFIED in rule.audiences:
        raise TypeError(f"{method.full_name} does not say who may call it (qflow.auth.v1.rule)")
    return rule


def _servicer(handler: Handler) -> Handle:
    """Call the servicer; what a stream yields is written here, so that every kind is awaitable."""
    behavior: Any = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )
    assert behavior is not None

    async def handle(call: Call, request: Any) -> Any:
        answer: Any = behavior(request, call.context)
        if not inspect.isasyncgen(answer):
            return await answer
        async with aclosing(answer) as messages:
            first = True
            async for message in messages:
                if first:
                    await _write_first(call.context, message)
                    first = False
                else:
                    await call.context.write(message)
        return None

    return handle


async def _write_first(context: Context, message: Any) -> None:
    """Write a stream's first message whole, though the stream be ended meanwhile.

    The answer's head goes with it. grpc.aio would send that once more with the status of a call
    whose head is still on its way, fail to, and leave both sides waiting.
    """
    writing = asyncio.ensure_future(context.write(message))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.wait([writing], timeout=_FIRST_WRITE_S)
        raise


def _as_grpc(
    handle: Handle,
    method: Method,
    read: Callable[[bytes], Any] | None,
    write: Callable[[Any], bytes] | None,
) -> Handler:
    async def serve(request: Any, context: Context) -> Any:
        metadata = context.invocation_metadata() or ()
        task = asyncio.current_task()
        assert task is not None
        call = Call(method, context, metadata, task, access_log.request_id(metadata))
        return await handle(call, request)

    # Messages are always read by the stages: grpc itself would wait for the one of a unary call
    # without a deadline, before anything is known of the caller. On the wire it is the same.
    make: Any = (
        grpc.stream_stream_rpc_method_handler
        if method.responses_stream
        else grpc.stream_unary_rpc_method_handler
    )
    composed: Handler = make(serve, request_deserializer=read, response_serializer=write)
    return composed
