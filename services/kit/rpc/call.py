"""One call, as it passes through the stages between the wire and a servicer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import grpc
from google.protobuf.descriptor import Descriptor
from qflow.auth.v1 import auth_pb2

from services.kit.caller import Caller

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Metadata: TypeAlias = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Time limits of calls, in seconds."""

    unary_default_s: float = 10.0
    unary_max_s: float = 60.0
    stream_max_s: float = 3600.0
    upload_idle_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What is known of an RPC before any call: its shape, its request type and who may call it."""

    name: str  # as on the wire: /package.Service/Method
    request: Descriptor
    requests_stream: bool
    responses_stream: bool
    # Whether the contract marks it as free of side effects.
    reads: bool
    # None only for health and reflection, which are anonymous.
    rule: auth_pb2.AuthRule | None
    # Whether it is served to users; False on the separate listener for other services.
    public: bool
    limits: Limits
    # Whether its calls are audited: they may change something for a user.
    changes: bool = False

    @property
    def streams(self) -> bool:
        """Whether either side is a stream."""
        return self.requests_stream or self.responses_stream

    @property
    def uploads(self) -> bool:
        """Whether only the caller streams."""
        return self.requests_stream and not self.responses_stream

    @property
    def anonymous(self) -> bool:
        """Whether it accepts callers without a token."""
        return self.rule is None or auth_pb2.AUDIENCE_ANONYMOUS in self.rule.audiences


@dataclass(slots=True)
class Call:
    """One call, and what the stages find out about it for the stages around them."""

    method: Method
    context: Context
    # The call's metadata, kept because grpc rebuilds it on every access.
    metadata: Metadata
    # The task that runs it: cancelling it ends the call.
    task: asyncio.Task[Any]
    id: str = ""
    caller: Caller | None = None


class Received(NamedTuple):
    """What was read from the wire: a message, or None for bytes that are not one."""

    message: Any  # a message of the method's input type; None when it could not be read
    has_nul: bool  # whether any byte of it was zero, so that a text may hold NUL


# A stage wraps the next inner one and returns the combined handle. `request` is a Received, or an
# asynchronous iterator of them; the result is the response, or None after a stream.
Handle: TypeAlias = Callable[[Call, Any], Coroutine[Any, Any, Any]]
