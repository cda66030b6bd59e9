"""What a place of a graph may be besides a Python node that runs once: as frozen values."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from qflow.types import Type

# How an edge is stored; an edge of data has no kind.
DATA: Final = ""
ORDER: Final = "order"
BRANCH: Final = "branch"
FAILURE: Final = "failure"
# What a failure edge may carry.
ERROR_OUTPUT: Final = "error"
# An edge whose source may end without a value gives this where its input has no default.
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


# How much of a process calls share, and how strongly they are held; both from least to most strict.
REUSES: Final = ("warm", "fork", "fresh", "container")
TIERS: Final = ("T0", "T1", "T2", "T3", "T4")
# What code reaches of the network, from nothing on.
NETWORKS: Final = ("none", "egress", "host")
EGRESS: Final = "egress"
_LABEL: Final = "[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
HOST_PATTERN: Final = re.compile(
    rf"(?=.{{1,260}}\Z)(\*|(\*\.)?{_LABEL}(\.{_LABEL})*)(:[1-9][0-9]{{0,4}})?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """What a place requires of the runner that it goes to."""

    isolation: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    cpus: int = 0
    memory_bytes: int = 0
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class Branch:
    """A way out of a choice, taken where its condition is the first that holds."""

    name: str
    condition: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Takes the first branch whose condition holds, else the default, else none."""

    kind = "choice"
    branches: tuple[Branch, ...] = ()
    default: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleep:
    """Waits for a time that its inputs say."""

    kind = "sleep"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """Waits for a value from outside; gives the default when the time is up, or fails."""

    kind = "signal"
    name: str = ""
    type: Type | None = None
    timeout_ms: int | None = None
    default_json: str | None = None
    # The form of the type as a caller wrote it, as of a workflow's input.
    type_text: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """Waits for a person who approves or does not, and may answer with a value."""

    kind = "approval"
    name: str = ""
    type: Type | None = None
    timeout_ms: int | None = None
    type_text: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubWorkflow:
    """Runs another workflow: the place's `node_id` is that workflow's, and so is its version."""

    kind = WORKFLOW


Construct: TypeAlias = "Choice | Sleep | Signal | Approval | SubWorkflow"


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """How many of its sources a place waits for; `count` is that of `n_of` alone."""

    policy: str = ALL
    count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Map:
    """A place that runs once for each element of the list at one of its inputs."""

    input: str
    depth: int = 1
    max_in_flight: int | None = None
    max_failed: int | None = None
    max_failed_ratio: float | None = None

    @property
    def tolerates(self) -> bool:
        """Whether elements may fail, whose values are null then."""
        return bool(self.max_failed or self.max_failed_ratio)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """A place that runs again while a condition holds; `carry` is of inputs and outputs."""

    condition: str
    max_turns: int
    carry: tuple[tuple[str, str], ...] = ()
    at_max: str = FINISH
