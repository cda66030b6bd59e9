"""When a warm interpreter is reused, waited for, started or retired."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from services.runner.domain.limits import Limits
from services.runner.domain.reuse import Reuse

# What starting a sandbox costs on a busy machine: if a busy one becomes free sooner, waiting is
# quicker, and leaves the processors to running calls.
START_COST_S: Final = 0.05
IDLE_MAX_S: Final = 60.0
AGE_MAX_S: Final = 3600.0
USES_MAX: Final = 100_000
MEMORY_USED_MAX: Final = 0.9
_NEWEST_WEIGHT: Final = 0.2
# Calls shorter than this take turns: a runner cannot start them fast enough to keep more
# interpreters than processors busy, whether they compute or wait.
_TURNS_BELOW_S: Final = 0.0002
_USUAL_STEP: Final = 1.25
# For a version without timings: the first interpreters show whether more are worth starting.
_STARTS_AT_ONCE: Final = 2
# Grants are limited to this multiple of the slots, and to about this much queued work per slot:
# what is queued here could run elsewhere.
AHEAD_MAX: Final = 32
_AHEAD_US: Final = 16_000
_SHORT_US: Final = 2_000


@dataclass(frozen=True, slots=True)
class WarmKey:
    """Which calls may share an interpreter: those of one tenant and node version, of equal limits.

    If each call has its own process, all versions of one environment share it: it holds no code
    then, and `node_version_id` is None. Calls with different secrets never share one.
    """

    tenant_id: UUID
    node_version_id: UUID | None
    environment_key: str
    limits: Limits
    reuse: Reuse = Reuse.WARM
    concurrency: int = 1  # how many concurrent calls it serves
    secrets: str = ""  # granted secrets and their versions
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Cached: keys are looked up several times per call, and hashing all fields would dominate.
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
    """How busy the interpreters of one key are; `busy` counts calls."""

    busy: int = 0
    starting: int = 0
    waiting: int = 0
    served: int = 0
    width: int = 1  # how many concurrent calls one interpreter serves
    hold_s: float = 1.0  # how long a call works, smoothed; counts as long until known
    usual_s: float = 1.0  # estimated median, which ignores a few delayed calls

    def note(self, hold_s: float) -> None:
        """Update the estimates with one finished call."""
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
    """Return whether calls are so short that more at once than processors do not help."""
    return load.usual_s < _TURNS_BELOW_S and load.width == 1


def worth_starting(load: Load) -> bool:
    """Return whether a new interpreter would serve a call sooner than the busy ones."""
    if load.width > 1 and load.starting * load.width > load.waiting:
        return False  # there will be room in one that is starting
    if load.busy == 0:
        return load.starting < _STARTS_AT_ONCE
    return (load.waiting + 1) / load.busy * load.hold_s > START_COST_S


def may_start(load: Load) -> bool:
    """Return whether another may be started now: at most as many at once as are busy, or two."""
    return load.starting < max(_STARTS_AT_ONCE, load.busy)


def stuck(load: Load, served: int) -> bool:
    """Return whether a call that waited for long needs another interpreter after all.

    `served` is the count when it began to wait. If others were served since, processors are scarce,
    not interpreters: one more would only slow down the running calls.
    """
    return may_start(load) and (load.served == served or worth_starting(load))


@dataclass(slots=True)
class Pace:
    """Tracks how long user code holds a slot, to grant short calls ahead of free slots.

    A message on the stream costs more than a short call: with more calls granted than slots,
    assignments and results are sent in batches.
    """

    user_us: float = 1_000_000.0
    ahead: int = 1

    def note(self, user_us: int) -> bool:
        """Update with one attempt; return whether the window changed."""
        self.user_us += _NEWEST_WEIGHT * (user_us - self.user_us)
        before = self.ahead
        fits = min(AHEAD_MAX, int(_AHEAD_US / max(self.user_us, 1.0)))
        if self.user_us > 4 * _SHORT_US:
            self.ahead = 1
        elif 2 * fits < before or (self.user_us < _SHORT_US and fits >= 2 * before):
            self.ahead = 1 << (fits.bit_length() - 1)  # in few steps, since each is sent
        return self.ahead != before


def worn_out(*, uses: int, age_s: float, memory_used: float = 0.0) -> bool:
    """Return whether an interpreter should be replaced, which bounds what leaks in it.

    `memory_used` is its peak as a share of its limit: close to the limit, the next call would fail
    for what earlier ones left.
    """
    return uses >= USES_MAX or age_s >= AGE_MAX_S or memory_used >= MEMORY_USED_MAX
