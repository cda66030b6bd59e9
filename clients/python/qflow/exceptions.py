"""Exceptions without a call: the base class, mistakes of authors, failed executions.

Depends on the standard library only, so that authoring and local runs need no gRPC.
"""

from __future__ import annotations


class QflowError(Exception):
    """The base class of all exceptions of this package."""


class AuthoringError(QflowError):
    """A mistake in a node or workflow written in Python."""


class ConfigurationError(QflowError):
    """It is not configured where Qflow is, or whom to call it as."""


class LocalFileError(QflowError):
    """A local file cannot be read or written; the message says why and what to do."""


class ExecutionFailedError(QflowError):
    """A run ended without a result.

    `error_type` is a stable identifier, `node_id` the first failed node (empty if the run itself
    failed), `stack_trace` has the frames of user code.
    """

    def __init__(
        self,
        message: str,
        *,
        execution_id: str = "",
        error_type: str = "",
        node_id: str = "",
        stack_trace: str = "",
    ) -> None:
        where = f"{node_id}: " if node_id else ""
        super().__init__(f"{where}{message}")
        self.message = message
        self.execution_id = execution_id
        self.error_type = error_type
        self.node_id = node_id
        self.stack_trace = stack_trace
