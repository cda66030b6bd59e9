"""Idempotency keys from requests, and the responses to repeated calls."""

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
    """Return the key of a request; None without a `request_id`, or when only validating."""
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
    """Encode the result of a call, or return the stored response of the first one with its key."""
    if isinstance(answer, Replayed):
        return response.FromString(answer.response)
    return respond(answer)
