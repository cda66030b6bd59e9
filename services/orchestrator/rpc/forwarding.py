"""Forwards calls about a run to the orchestrator that owns it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import wraps
from typing import Any, Protocol, TypeVar
from uuid import UUID

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from services.kit.caller import current_caller
from services.kit.rpc import codec as kit
from services.orchestrator.usecases.forward import Router

Servicer = TypeVar("Servicer", bound="Routed")
Request = TypeVar("Request")
Response = TypeVar("Response")
Unary = Callable[[Any, Any, Any], Awaitable[Response]]


class Routed(Protocol):
    """A servicer with calls that the owner of the run answers."""

    service: str  # its full name
    router: Router


def to_owner(method: Unary[Response]) -> Unary[Response]:
    """Decorate a unary RPC with `execution_id` in its request: the run's owner executes it.

    The owner answers after its flush. While there is no owner the call fails with UNAVAILABLE and
    RetryInfo; it may have been executed, so it must be idempotent.
    """
    name = method.__name__

    @wraps(method)
    async def call(servicer: Routed, request: Any, context: Any) -> Response:
        return await servicer.router.at_owner(
            _execution_id(request),
            here=lambda: method(servicer, request, context),
            there=lambda address: _asked(servicer, address, name, request),
        )

    return may_be_forwarded(call)


def may_be_forwarded(method: Callable[..., Any]) -> Callable[..., Any]:
    """Allow other orchestrators to forward this RPC."""
    method.forwardable = True  # type: ignore[attr-defined]
    return method


async def follow(servicer: Routed, name: str, request: Any) -> AsyncIterator[Any] | None:
    """Return the stream of the run's owner; None if that is this orchestrator."""
    address = await _address(servicer, request)
    if address is None:
        return None
    message = GetMessageClass(method_of(servicer.service, name).output_type)
    raw = servicer.router.peers.stream(
        address,
        f"/{servicer.service}/{name}",
        request.SerializeToString(),
        current_caller(),
    )
    return (message.FromString(each) async for each in raw)


async def _asked(servicer: Routed, address: str, name: str, request: Any) -> Any:
    described = method_of(servicer.service, name)
    raw = await servicer.router.peers.call(
        address,
        f"/{servicer.service}/{name}",
        request.SerializeToString(),
        current_caller(),
    )
    return GetMessageClass(described.output_type).FromString(raw)


async def _address(servicer: Routed, request: Any) -> str | None:
    return await servicer.router.address(_execution_id(request))


def _execution_id(request: Any) -> UUID:
    return kit.uuid_from(request.execution_id, field="execution_id")


def method_of(service: str, name: str) -> MethodDescriptor:
    """Return the descriptor of an RPC; raises KeyError if there is none."""
    found: MethodDescriptor = (
        descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    )
    return found
