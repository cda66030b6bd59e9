"""What a place of a graph can be besides a Python node that runs once."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from qflow.types import Type

# The kind of an edge as stored; a data edge has none.
DATA: Final = ""
ORDER: Final = "order"
BRANCH: Final = "branch"
FAILURE: Final = "failure"
# The only output that a failure edge can carry.
ERROR_OUTPUT: Final = "error"
# If the source of an edge may end without a value, its target gets null, unless it has a default.
ABSENT_NULL: Final = "null"

PYTHON: Final = "python"
WORKFLOW: Final = "workflow"

ALL: Final = "all"
ANY_OF: Final = "any"
N_OF: Final = "n_of"
ALL_DONE: Final = "all_done"

CONTINUE: Final = "continue"
FINALLY: Final = "finally"
FINISH: Final = "finish"
FAIL: Final = "fail"


# How much of a process calls share, and how strongly they are isolated; weakest first.
REUSES: Final = ("warm", "fork", "fresh", "container")
TIERS: Final = ("T0", "T1", "T2", "T3", "T4")
# Which network code can reach, least first.
NETWORKS: Final = ("none", "egress", "host")
EGRESS: Final = "egress"
_LABEL: Final = "[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
HOST_PATTERN: Final = re.compile(
    rf"(?=.{{1,260}}\Z)(\*|(\*\.)?{_LABEL}(\.{_LABEL})*)(:[1-9][0-9]{{0,4}})?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """What a place requires of its runner."""

    isolation: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    cpus: int = 0
    memory_bytes: int = 0
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class Branch:
    """A branch of a choice, taken if its condition is the first that holds."""

    name: str
    condition: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Takes the first branch whose condition holds, else the default branch, else none."""

    kind = "choice"
    branches: tuple[Branch, ...] = ()
    default: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleep:
    """Waits for a time given by its inputs."""

    kind = "sleep"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """Waits for a value from outside; on timeout uses the default, or fails without one."""

    kind = "signal"
    name: str = ""
    type: Type | None = None
    timeout_ms: int | None = None
    default_json: str | None = None
    # The type as the caller wrote it, as for a workflow's input.
    type_text: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """Waits for a person's approval or rejection, with an optional value."""

    kind = "approval"
    name: str = ""
    type: Type | None = None
    timeout_ms: int | None = None
    type_text: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubWorkflow:
    """Runs another workflow: the place's `node_id` and `version` are that workflow's."""

    kind = WORKFLOW


Construct: TypeAlias = "Choice | Sleep | Signal | Approval | SubWorkflow"


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """How many of its sources a place waits for; `count` is only used by `n_of`."""

    policy: str = ALL
    count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Map:
    """Runs a place once for each element of the list at one of its inputs."""

    input: str
    depth: int = 1
    max_in_flight: int | None = None
    max_failed: int | None = None
    max_failed_ratio: float | None = None

    @property
    def tolerates(self) -> bool:
        """Whether elements may fail; their results are then null."""
        return bool(self.max_failed or self.max_failed_ratio)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """Repeats a place while a condition holds; `carry` maps inputs to outputs."""

    condition: str
    max_turns: int
    carry: tuple[tuple[str, str], ...] = ()
    at_max: str = FINISH
