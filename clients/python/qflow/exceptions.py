"""What Qflow raises where no call was made: the root of all its errors, and the author's mistakes.

Of the standard library alone, so that authoring and running locally need no gRPC.
"""

from __future__ import annotations


class QflowError(Exception):
    """The root of everything that this package raises."""


class AuthoringError(QflowError):
    """A workflow or a node cannot be made of what was written."""


class ConfigurationError(QflowError):
    """It is not known where Qflow is, or as whom to call it."""


class LocalFileError(QflowError):
    """A file of this machine cannot be read or written: why, and what to do, is in the message."""


class ExecutionFailedError(QflowError):
    """A run ended without a result.

    `error_type` is the stable word of what happened, `node_id` the place that failed first (empty
    where the run itself failed), `stack_trace` the frames of user code.
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
