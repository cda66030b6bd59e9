"""Every handler of a server, wrapped in its stages, by the full name of its RPC."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final, TypeAlias

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from grpc_health.v1 import health
from qflow.auth.v1 import auth_pb2

from services.kit.audit import Recorder
from services.kit.deadlines import Deadlines
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
from services.kit.rpc.call import Call, Context, Handle, Method
from services.kit.rpc.fair_share import FairShare
from services.kit.rpc.identity import Authenticator
from services.kit.rpc.listener import Listener
from services.kit.rpc.tally import Calls
from services.kit.traces import Tracer

_FIRST_WRITE_S: Final = 2
# Services that need no token, by full name; nothing is matched by prefix or suffix.
_OPEN: Final = frozenset({health.SERVICE_NAME, reflection.V1, reflection.V1ALPHA})

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Handlers(grpc.GenericRpcHandler):
    """Takes the server's place while servicers are added, and wraps every handler in its stages.

    Not an interceptor: grpc.aio runs those again for every call, which costs more than all stages
    together, and a handler could be added without them. Here it cannot.
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
        self._uploads = deadline.OpenStreams()
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

    def add_registered_method_handlers(
        self, service_name: str, handlers: Mapping[str, Handler]
    ) -> None:
        """Serve a service of the contract; raises if an RPC has no rule on who may call it."""
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
        """Refuse unary calls from now on because the server stops, except for health checks.

        Streams are accepted as before, until they are told to end.
        """
        self._handlers |= self._refusals

    def end(self) -> None:
        """End calls that still wait for a response with DRAINING, while they can be told."""
        self._deadlines.end_all()
        self._uploads.end()

    def service(self, details: grpc.HandlerCallDetails) -> Handler | None:
        """Return a handler by its full name, with one lookup for all services."""
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
        handle = (self.streams if method.responses_stream else self._uploads).stage(handle)
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
        raise TypeError(f"{method.full_name} has no rule on who may call it (qflow.auth.v1.rule)")
    return rule


def _servicer(handler: Handler) -> Handle:
    """Call the servicer; messages of a stream are written here, so that every kind is awaitable."""
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
    """Write the first message of a stream completely, even if the stream is cancelled meanwhile.

    The initial metadata is sent with it. If the call ended while that is being sent, grpc.aio
    would send it again with the status, fail, and leave both sides waiting.
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

    # The stages read all messages: grpc itself would wait without a deadline for the message of a
    # unary call, before the caller is known. On the wire both forms are the same.
    make: Any = (
        grpc.stream_stream_rpc_method_handler
        if method.responses_stream
        else grpc.stream_unary_rpc_method_handler
    )
    composed: Handler = make(serve, request_deserializer=read, response_serializer=write)
    return composed
