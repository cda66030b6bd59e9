"""When a warm interpreter is reused, waited for, started or given up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from services.runner.domain.limits import Limits
from services.runner.domain.reuse import Reuse

# What a new sandbox costs on a busy machine: below this, waiting for a busy one is quicker, and it
# leaves the processors to those who work.
START_COST_S: Final = 0.05
IDLE_MAX_S: Final = 60.0
AGE_MAX_S: Final = 3600.0
USES_MAX: Final = 100_000
MEMORY_USED_MAX: Final = 0.9
_NEWEST_WEIGHT: Final = 0.2
# Calls shorter than this take turns. Below it as many at once as there are processors are more than
# a runner can begin, whether the calls compute or wait.
_TURNS_BELOW_S: Final = 0.0002
_USUAL_STEP: Final = 1.25
# Of a version that nobody has timed yet: the first ones show whether more are worth their start.
_STARTS_AT_ONCE: Final = 2
# How many times its slots a runner is granted at most, and how much work may wait for each slot, or
# so: what waits here could be done elsewhere.
AHEAD_MAX: Final = 32
_AHEAD_US: Final = 16_000
_SHORT_US: Final = 2_000


@dataclass(frozen=True, slots=True)
class WarmKey:
    """Who may share an interpreter: one tenant's calls of one node version, equally limited.

    Where each call has a process of its own, the versions of one environment share it: then it
    holds nobody's code, and `node_version_id` is None. Calls with other secrets never share one.
    """

    tenant_id: UUID
    node_version_id: UUID | None
    environment_key: str
    limits: Limits
    reuse: Reuse = Reuse.WARM
    concurrency: int = 1  # how many calls it serves at once
    secrets: str = ""  # which ones calls get, in which versions
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Looked up several times per call: hashing four fields each time would be most of it.
        parts = (
            self.tenant_id,
            self.node_version_id,
            self.environment_key,
            self.limits,
            self.reuse,
            self.concurrency,
            self.secrets,
        )
        object.__setattr__(self, "_hash", hash(parts))

    def __hash__(self) -> int:
        return self._hash


@dataclass(slots=True)
class Load:
    """How busy the interpreters of one key are: `busy` counts calls."""

    busy: int = 0
    starting: int = 0
    waiting: int = 0
    served: int = 0
    width: int = 1  # how many calls one interpreter serves at once
    hold_s: float = 1.0  # how long a call's own work holds one, smoothed; unknown counts as long
    usual_s: float = 1.0  # what half of them stay below: a few that are held up do not count

    def note(self, hold_s: float) -> None:
        """Learn from one finished call."""
        self.served += 1
        if self.served == 1:
            self.usual_s = hold_s
        elif hold_s > self.usual_s:
            self.usual_s *= _USUAL_STEP
        else:
            self.usual_s /= _USUAL_STEP
        if self.hold_s >= 1.0 > hold_s:
            self.hold_s = hold_s
        else:
            self.hold_s += _NEWEST_WEIGHT * (hold_s - self.hold_s)


def takes_turns(load: Load) -> bool:
    """Whether the calls are so short that more of them at once than processors help none."""
    return load.usual_s < _TURNS_BELOW_S and load.width == 1


def worth_starting(load: Load) -> bool:
    """Whether one more interpreter serves a new call sooner than those at work would."""
    if load.width > 1 and load.starting * load.width > load.waiting:
        return False  # there will be room for it
    if load.busy == 0:
        return load.starting < _STARTS_AT_ONCE
    return (load.waiting + 1) / load.busy * load.hold_s > START_COST_S


def may_start(load: Load) -> bool:
    """Whether one more start fits: they double with what is at work, and never come as a storm."""
    return load.starting < max(_STARTS_AT_ONCE, load.busy)


def stuck(load: Load, served: int) -> bool:
    """Whether a call that waited its time, since `served` were served, needs one more after all.

    Where others were served meanwhile it is the processors that are short, not interpreters: one
    more would only take from those at work.
    """
    return may_start(load) and (load.served == served or worth_starting(load))


@dataclass(slots=True)
class Pace:
    """How long user code holds a slot; short calls are granted ahead of it, long ones are not.

    A message on the stream costs more than a short call: with more calls under way than slots,
    assignments and results travel in company.
    """

    user_us: float = 1_000_000.0
    ahead: int = 1

    def note(self, user_us: int) -> bool:
        """Learn from one attempt; True when the window changes."""
        self.user_us += _NEWEST_WEIGHT * (user_us - self.user_us)
        before = self.ahead
        fits = min(AHEAD_MAX, int(_AHEAD_US / max(self.user_us, 1.0)))
        if self.user_us > 4 * _SHORT_US:
            self.ahead = 1
        elif 2 * fits < before or (self.user_us < _SHORT_US and fits >= 2 * before):
            self.ahead = 1 << (fits.bit_length() - 1)  # in few steps: each is told
        return self.ahead != before


def worn_out(*, uses: int, age_s: float, memory_used: float = 0.0) -> bool:
    """Whether an interpreter has served long enough: what it leaks has a bound.

    `memory_used` is the part of its limit that it held at most: close to it the next call would
    pay for what those before it left.
    """
    return uses >= USES_MAX or age_s >= AGE_MAX_S or memory_used >= MEMORY_USED_MAX
