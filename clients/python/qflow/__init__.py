"""Qflow: typed, durable workflows of plain Python functions.

    import qflow

    @qflow.node
    def double(n: int) -> int:
        return 2 * n

    @qflow.workflow
    def twice(n: int) -> int:
        return double(double(n))

    twice.run_local(3)                     # 12, here, without a server

    async with qflow.connect() as client:
        await client.run(twice, 3)         # 12, on a Qflow

Names are imported on first use: authoring alone does not load gRPC.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from qflow.authoring.constructs import (
        Approval,
        Choice,
        after,
        approval,
        choice,
        finally_,
        on_failure,
        signal,
        sleep,
        sleep_until,
    )
    from qflow.authoring.graph import Options, Retry, Runner
    from qflow.authoring.node import Node, node
    from qflow.authoring.workflow import Workflow, workflow
    from qflow.client.blocking import BlockingClient, connect_blocking
    from qflow.client.client import Client, connect
    from qflow.client.files import DigestError
    from qflow.client.push import Refused
    from qflow.client.runs import Run
    from qflow.errors import (
        AbortedError,
        AlreadyExistsError,
        CallError,
        CancelledError,
        DataLossError,
        DeadlineExceededError,
        FailedPreconditionError,
        FieldViolation,
        InternalError,
        InvalidArgumentError,
        NotFoundError,
        OutOfRangeError,
        PermissionDeniedError,
        ResourceExhaustedError,
        UnauthenticatedError,
        UnavailableError,
        UnimplementedError,
    )
    from qflow.exceptions import (
        AuthoringError,
        ConfigurationError,
        ExecutionFailedError,
        LocalFileError,
        QflowError,
    )
    from qflow.local import EdgeRefusedError, Local
    from qflow.values import ValueTypeError

_HOMES: Final = {
    "qflow.authoring.constructs": (
        "Approval Choice after approval choice finally_ on_failure signal sleep sleep_until"
    ),
    "qflow.authoring.graph": "Options Retry Runner",
    "qflow.authoring.node": "Node node",
    "qflow.authoring.workflow": "Workflow workflow",
    "qflow.client.blocking": "BlockingClient connect_blocking",
    "qflow.client.client": "Client connect",
    "qflow.client.files": "DigestError",
    "qflow.client.push": "Refused",
    "qflow.client.runs": "Run",
    "qflow.errors": (
        "AbortedError AlreadyExistsError CallError CancelledError DataLossError "
        "DeadlineExceededError FailedPreconditionError FieldViolation InternalError "
        "InvalidArgumentError NotFoundError OutOfRangeError PermissionDeniedError "
        "ResourceExhaustedError UnauthenticatedError UnavailableError UnimplementedError"
    ),
    "qflow.exceptions": (
        "AuthoringError ConfigurationError ExecutionFailedError LocalFileError QflowError"
    ),
    "qflow.local": "EdgeRefusedError Local",
    "qflow.values": "ValueTypeError",
}
_HOME: Final = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "AbortedError",
    "AlreadyExistsError",
    "Approval",
    "AuthoringError",
    "BlockingClient",
    "CallError",
    "CancelledError",
    "Choice",
    "Client",
    "ConfigurationError",
    "DataLossError",
    "DeadlineExceededError",
    "DigestError",
    "EdgeRefusedError",
    "ExecutionFailedError",
    "FailedPreconditionError",
    "FieldViolation",
    "InternalError",
    "InvalidArgumentError",
    "Local",
    "LocalFileError",
    "Node",
    "NotFoundError",
    "Options",
    "OutOfRangeError",
    "PermissionDeniedError",
    "QflowError",
    "Refused",
    "ResourceExhaustedError",
    "Retry",
    "Run",
    "Runner",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "ValueTypeError",
    "Workflow",
    "after",
    "approval",
    "choice",
    "connect",
    "connect_blocking",
    "finally_",
    "node",
    "on_failure",
    "signal",
    "sleep",
    "sleep_until",
    "workflow",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'qflow' has no attribute {name!r}")
    found = getattr(importlib.import_module(home), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
