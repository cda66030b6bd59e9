"""The port that every sandbox tier fills."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from uuid import UUID

from services.runner.domain.limits import Limits, Tier
from services.runner.domain.network import Reach
from services.runner.domain.node_logs import Stream
from services.runner.domain.secrets import NO_MASK, Mask

if TYPE_CHECKING:
    import asyncio

Header = Mapping[str, Any]
OnBeat = Callable[[bytes], None]  # takes how far the code has come, JSON text; untrusted
# Takes a sandbox's listening socket, closes this process's copy, and answers on it until what it
# gives is called.
ServeEgress = Callable[[int], Callable[[], None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """What to start: an interpreter, its environment and its caps."""

    sandbox_id: UUID
    python: Path
    prefix: Path
    agent: Path
    environment: Path | None
    limits: Limits
    binds: Sequence[tuple[Path, str]] = ()  # (host directory, place), read-write
    exchange: Path | None = None  # where files are handed over
    egress: ServeEgress | None = None  # of limits whose network is egress: the way out


class Reply(NamedTuple):
    """One answer of the agent. Untrusted: user code shares its process."""

    header: Header
    body: bytes = b""
    descriptors: Sequence[int] = ()  # open files that came along; whoever takes them closes them


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxUsage:
    """What a sandbox used over its whole life."""

    memory_peak_bytes: int = 0
    cpu_us: int = 0

    def as_json(self) -> dict[str, object]:
        """Give the form that `containers.resource_usage` keeps."""
        return {"memory_peak_bytes": self.memory_peak_bytes, "cpu_us": self.cpu_us}


class SandboxDied(Exception):  # noqa: N818 - it is an event as much as an error
    """The sandbox ended before it answered."""

    def __init__(self, message: str, *, oom: bool = False, status: int | None = None) -> None:
        super().__init__(message)
        self.oom = oom
        self.status = status


OnAnswer = Callable[[Reply | SandboxDied], None]


class OutputSink(Protocol):
    """Takes what user code writes during one call, as it comes."""

    def printed(self, stream: Stream, piece: bytes) -> None:
        """Take what was written to stdout or stderr."""

    def recorded(self, level: int, logger: str, text: str) -> None:
        """Take one record of `logging`. Untrusted, like all that an agent says."""


class Talk(Protocol):
    """What one call says to an agent, and hears."""

    def request(
        self,
        header: Header,
        body: bytes = b"",
        *,
        reply_bytes_max: int = 1 << 20,
        descriptors_max: int = 0,
    ) -> Awaitable[Reply]:
        """Send one frame and await its answer; raises SandboxDied."""

    def begin_output(
        self,
        sink: OutputSink | None = None,
        on_beat: OnBeat | None = None,
        mask: Mask = NO_MASK,
    ) -> None:
        """Forget what was printed until now; a sink takes what follows, `on_beat` heartbeats.

        Nothing that the mask takes out is kept or passed on.
        """

    def output_tails(self) -> tuple[str, str]:
        """Give the ends of stdout and stderr since `begin_output`."""


class SharedTalk(Talk, Protocol):
    """The same, of a call that is not the only one."""

    @property
    def answered(self) -> asyncio.Future[Reply]:
        """Done once there is an answer, or none will come."""

    @property
    def met(self) -> bool:
        """Whether another call was under way at the same time: what ended both may be of either."""

    def cancel(self) -> None:
        """Have the call's task cancelled; what becomes of it is its answer."""


class SharedCalls(Protocol):
    """An agent that serves several calls at once."""

    def begin(self) -> SharedTalk:
        """Begin one more call."""


class Sandbox(Talk, Protocol):
    """A live sandbox with an agent inside that answers one request at a time."""

    tier: Tier
    spec: SandboxSpec
    name: str  # the adapter and what this machine calls it: the same for one sandbox always
    environment_path: str  # where the agent finds the packages; empty without any
    files_path: str  # where it finds files that are handed to it; empty without an exchange
    output_path: str  # the file that it may write, however large

    def ask(
        self, header: Header, body: bytes, on_answer: OnAnswer, *, reply_bytes_max: int
    ) -> None:
        """Send one frame and have its answer, or that none will come, told in the loop's callback.

        That is never before this returns.
        """

    def share(self, *, reply_bytes_max: int) -> SharedCalls:
        """Let several calls be under way from now on: its agent has loaded code that can."""

    def usage(self) -> SandboxUsage:
        """Give what it used until now, as the kernel counts it; nothing where nobody does."""

    async def kill(self, *, grace_s: float = 0.0) -> SandboxUsage:
        """End every process inside: SIGTERM to the agent first where a grace is given."""

    def alive(self) -> bool:
        """Whether the sandbox still runs."""

    @property
    def ended(self) -> asyncio.Future[int]:
        """Done, with the exit status, once the sandbox is gone."""


class SandboxHost(Protocol):
    """Starts sandboxes of one tier."""

    tier: Tier
    networks: Sequence[Reach]  # what it can give of the network, besides nothing

    async def start(self, spec: SandboxSpec) -> Sandbox:
        """Start a sandbox whose agent is ready to load; raises SandboxDied."""

    async def living(self) -> set[UUID]:
        """List the sandboxes of this home that there are, whoever started them."""

    async def strays(self) -> set[UUID]:
        """List those that this host does not know: nobody will end them."""

    async def remove(self, sandbox_id: UUID) -> None:
        """End a sandbox that nobody here wants."""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """One Python found on this machine."""

    version: str
    executable: Path
    prefix: Path
    agent: Path = field(default=Path())


def status_text(status: int) -> str:
    """Say how a process ended: by which signal, or with which status."""
    number = -status if status < 0 else status - 128
    if number > 0:
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(number).name}"
    return f"exit status {status}"
