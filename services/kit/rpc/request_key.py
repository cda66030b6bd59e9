"""What makes a call repeatable, taken from its request; and how a repeated one is answered."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import Message

from services.kit.idempotency import Replayed, RequestKey
from services.kit.rpc import codec

T = TypeVar("T")
M = TypeVar("M", bound=Message)


def request_key(request: Any, method: str, respond: Callable[[T], Message]) -> RequestKey[T] | None:
    """Make the key of a request that has a `request_id`; None without one, or when validating."""
    request_id = codec.uuid_or_none(request.request_id, field="request_id")
    if request_id is None or getattr(request, "validate_only", False):
        return None
    body = type(request)()
    body.CopyFrom(request)
    body.request_id = ""
    digest = hashlib.sha256(body.SerializeToString(deterministic=True)).hexdigest()
    return RequestKey(
        method, request_id, digest, lambda result: respond(result).SerializeToString()
    )


def answered(response: type[M], answer: T | Replayed, respond: Callable[[T], M]) -> M:
    """Encode what a call did, or give the answer of the first call with its request id."""
    if isinstance(answer, Replayed):
        return response.FromString(answer.response)
    return respond(answer)
