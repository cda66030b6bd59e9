"""The scopes that the contract defines for users, from the rules of all RPCs."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache
from typing import Final

from google.protobuf.descriptor import MethodDescriptor
from qflow.auth.v1 import auth_pb2

from services.registry.rpc.user_codec import ROLES

_PACKAGES: Final = ("registry", "orchestrator", "runner", "telemetry")


@cache
def scopes_of(role: str) -> frozenset[str]:
    """Return the scopes of all RPCs that a user with this role may call."""
    rules = [method.GetOptions().Extensions[auth_pb2.rule] for method in _methods()]
    return frozenset(
        rule.scope
        for rule in rules
        if auth_pb2.AUDIENCE_USER in rule.audiences and ROLES[role] in rule.roles
    )


def _methods() -> Iterator[MethodDescriptor]:
    for name in _PACKAGES:
        package = importlib.import_module(f"qflow.{name}.v1")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if module.name.endswith("_service_pb2"):
                file = importlib.import_module(module.name).DESCRIPTOR
                for service in file.services_by_name.values():
                    yield from service.methods
