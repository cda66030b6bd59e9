"""Cache responses for a second, and drop them at once after a change by this process.

A response is cached per tenant, since access to a definition depends only on the tenant. A change
by another process is visible after a second at most.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message

from services.kit.caller import current_caller
from services.kit.errors import Unauthenticated
from services.kit.recent import Loaded, Recent
from services.kit.rpc.server import Servicer

Answers: TypeAlias = "Recent[tuple[object, ...], Any]"

AGE_MAX_S: Final = 1.0
_PACKAGE: Final = "qflow.registry.v1"
_BYTES_MAX: Final = 16 * 1024 * 1024
# An entry's memory besides its bytes.
_OVERHEAD_BYTES: Final = 512


def recent_answers() -> Answers:
    """Create the response cache of this process."""
    return Recent(ttl_s=AGE_MAX_S, weight_max=_BYTES_MAX)


def kept(answer: Message, *, lasting: bool = True) -> Loaded[Any]:
    """Encode a response once for all who receive it; not cached unless `lasting`.

    The kit sends encoded responses as they are (`services.kit.rpc.unary`).
    """
    encoded = answer.SerializeToString()
    return Loaded(encoded, len(encoded) + _OVERHEAD_BYTES if lasting else 0)


def forgetting(entry: Servicer, answers: Answers) -> Servicer:
    """Wrap a servicer, so that each changing RPC drops the cached responses of its tenant."""
    add_to_server, servicer = entry
    name = add_to_server.__name__.removeprefix("add_").removesuffix("Servicer_to_server")
    service = descriptor_pool.Default().FindServiceByName(f"{_PACKAGE}.{name}")
    changing = {
        each.name
        for each in service.methods
        if each.GetOptions().idempotency_level != MethodOptions.NO_SIDE_EFFECTS
    }
    return add_to_server, _Forgetting(servicer, changing, answers)


class _Forgetting:
    def __init__(self, servicer: object, changing: set[str], answers: Answers) -> None:
        self._servicer = servicer
        self._changing = changing
        self._answers = answers

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._servicer, name)
        return self._wrapped(method) if name in self._changing else method

    def _wrapped(
        self, method: Callable[[Any, Any], Awaitable[Message]]
    ) -> Callable[[Any, Any], Awaitable[Message]]:
        @functools.wraps(method)
        async def call(request: Any, context: Any) -> Message:
            try:
                return await method(request, context)
            finally:  # after a failure too: the write may still have been committed
                with contextlib.suppress(Unauthenticated):  # signing in changes no definition
                    self._answers.forget(current_caller().tenant_id)

        return call
