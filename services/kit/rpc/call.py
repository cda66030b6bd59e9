"""One call on its way through the stages between the wire and a servicer."""

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
    """How long calls may last, in seconds."""

    unary_default_s: float = 10.0
    unary_max_s: float = 60.0
    stream_max_s: float = 3600.0
    upload_idle_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What is known about an RPC before any call: its shape, its input and who may call it."""

    name: str  # as on the wire: /package.Service/Method
    request: Descriptor
    requests_stream: bool
    responses_stream: bool
    # Whether the contract says that it changes nothing.
    reads: bool
    # None for health and reflection alone, which answer anybody.
    rule: auth_pb2.AuthRule | None
    # Whether it is served to users, and not to other services on a listener of their own.
    public: bool
    limits: Limits
    # Whether a call may change something for a user, which is noted.
    changes: bool = False

    @property
    def streams(self) -> bool:
        """Whether either side is a stream."""
        return self.requests_stream or self.responses_stream

    @property
    def uploads(self) -> bool:
        """Whether the caller alone streams."""
        return self.requests_stream and not self.responses_stream

    @property
    def anonymous(self) -> bool:
        """Whether it answers callers without a token."""
        return self.rule is None or auth_pb2.AUDIENCE_ANONYMOUS in self.rule.audiences


@dataclass(slots=True)
class Call:
    """One call: what the stages learn about it, each for the ones around it."""

    method: Method
    context: Context
    # What the caller sent beside the message; grpc makes it anew each time that it is asked.
    metadata: Metadata
    # The one that it runs in: to cancel it ends the call.
    task: asyncio.Task[Any]
    id: str = ""
    caller: Caller | None = None


class Received(NamedTuple):
    """What the wire held: a message, or nothing that could be read."""

    message: Any  # a message of the method's input type; None when it could not be read
    has_nul: bool  # whether a zero byte stood anywhere in it, perhaps within a text


# A stage takes the next one inwards and gives the one it makes of it. `request` is a Received,
# or an asynchronous iterator of them; the result is the response, or None after a stream.
Handle: TypeAlias = Callable[[Call, Any], Coroutine[Any, Any, Any]]
