"""Translates RPC names in messages of services into commands of this program."""

from __future__ import annotations

import re
from typing import Final

# Longer names first.
_COMMANDS: Final = {
    "RerunExecution from it with node_version 0": "qflow rerun --from NODE --newest",
    "RerunExecution": "qflow rerun",
    "RetryExecution": "qflow retry",
    "RetryQuarantined": "qflow retry --quarantined",
    "ForkExecution": "qflow fork",
    "CancelExecution": "qflow cancel",
    "StartExecution": "qflow run",
    "ExplainExecution": "qflow explain",
    "ResumeExecution": "qflow resume",
    "ListWaits": "qflow waits",
    "RunNode": "qflow node run",
    "SendSignal": "qflow signal",
    "AnswerApproval": "qflow approve",
    "UpdateLimit": "qflow limit set",
    "ListExecutions": "qflow ls",
    "ListWorkflows": "qflow workflow ls",
    "ListWorkflowAliases": "qflow alias ls",
    "ListNodes": "qflow node ls",
    "ListSchedules": "qflow schedule ls",
    "ListScheduleBackfills": "qflow schedule backfills",
    "ListTriggers": "qflow trigger ls",
    "ListLimits": "qflow limit ls",
    "ListEventSubscriptions": "qflow events ls",
    "ListEventDeliveries": "qflow events deliveries",
}
_RPC: Final = re.compile(rf"\b(?:{'|'.join(_COMMANDS)})\b")


def in_shell(told: str) -> str:
    """Return a message with RPC names replaced by commands."""
    return _RPC.sub(lambda found: f"`{_COMMANDS[found[0]]}`", told)
