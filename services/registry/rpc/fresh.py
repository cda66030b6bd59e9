"""Answers of the last second, and what makes this process forget them at once.

An answer is kept for the tenant that was given it: who may read a definition depends on the
tenant alone. A change that another process makes is seen a second later, at most.
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
# What an answer takes besides its bytes.
_OVERHEAD_BYTES: Final = 512


def recent_answers() -> Answers:
    """Make room for answers of this process."""
    return Recent(ttl_s=AGE_MAX_S, weight_max=_BYTES_MAX)


def kept(answer: Message, *, lasting: bool = True) -> Loaded[Any]:
    """Encode an answer, once for all who will get it; one that changes by itself is not kept.

    The kit sends encoded answers as they are (`services.kit.rpc.unary`).
    """
    encoded = answer.SerializeToString()
    return Loaded(encoded, len(encoded) + _OVERHEAD_BYTES if lasting else 0)


def forgetting(entry: Servicer, answers: Answers) -> Servicer:
    """Make every RPC of a servicer that changes something forget what its tenant was told."""
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
            finally:  # also where it failed: it may have been written all the same
                with contextlib.suppress(Unauthenticated):  # signing in changes no definition
                    self._answers.forget(current_caller().tenant_id)

        return call
