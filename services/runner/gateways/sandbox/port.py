"""The port that every sandbox tier implements."""

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
OnBeat = Callable[[bytes], None]  # receives the code's progress, as JSON text; untrusted
# Takes over a sandbox's listening socket, closes this process's copy, and serves on it until the
# returned function is called.
ServeEgress = Callable[[int], Callable[[], None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """What to start: an interpreter, its environment and its limits."""

    sandbox_id: UUID
    python: Path
    prefix: Path
    agent: Path
    environment: Path | None
    limits: Limits
    binds: Sequence[tuple[Path, str]] = ()  # (host folder, path inside), read-write
    exchange: Path | None = None  # folder to exchange files
    egress: ServeEgress | None = None  # the way out, if the network is egress


class Reply(NamedTuple):
    """A reply of the agent. Untrusted: user code shares its process."""

    header: Header
    body: bytes = b""
    descriptors: Sequence[int] = ()  # open files that were sent along; the receiver closes them


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxUsage:
    """What a sandbox used over its whole life."""

    memory_peak_bytes: int = 0
    cpu_us: int = 0

    def as_json(self) -> dict[str, object]:
        """Return the form stored in `containers.resource_usage`."""
        return {"memory_peak_bytes": self.memory_peak_bytes, "cpu_us": self.cpu_us}


class SandboxDied(Exception):  # noqa: N818 - it is an event as much as an error
    """The sandbox ended before it replied."""

    def __init__(self, message: str, *, oom: bool = False, status: int | None = None) -> None:
        super().__init__(message)
        self.oom = oom
        self.status = status


OnAnswer = Callable[[Reply | SandboxDied], None]


class OutputSink(Protocol):
    """Receives the output of user code during one call, as it comes."""

    def printed(self, stream: Stream, piece: bytes) -> None:
        """Receive output written to stdout or stderr."""

    def recorded(self, level: int, logger: str, text: str) -> None:
        """Receive one record of `logging`; untrusted, like all that an agent sends."""


class Talk(Protocol):
    """The conversation of one call with an agent."""

    def request(
        self,
        header: Header,
        body: bytes = b"",
        *,
        reply_bytes_max: int = 1 << 20,
        descriptors_max: int = 0,
    ) -> Awaitable[Reply]:
        """Send one frame and await its reply; raises SandboxDied."""

    def begin_output(
        self,
        sink: OutputSink | None = None,
        on_beat: OnBeat | None = None,
        mask: Mask = NO_MASK,
    ) -> None:
        """Forget earlier output; what follows goes to `sink`, heartbeats to `on_beat`.

        What the mask matches is neither kept nor passed on.
        """

    def output_tails(self) -> tuple[str, str]:
        """Return the ends of stdout and stderr since `begin_output`."""


class SharedTalk(Talk, Protocol):
    """The same for a call that shares its agent with others."""

    @property
    def answered(self) -> asyncio.Future[Reply]:
        """Done once there is a reply, or none will come."""

    @property
    def met(self) -> bool:
        """Whether another call ran at the same time: either may have caused the end of both."""

    def cancel(self) -> None:
        """Cancel the call's task in the agent; the call still gets a reply."""


class SharedCalls(Protocol):
    """An agent that serves several calls at once."""

    def begin(self) -> SharedTalk:
        """Begin one more call."""


class Sandbox(Talk, Protocol):
    """A live sandbox with an agent inside that handles one request at a time."""

    tier: Tier
    spec: SandboxSpec
    name: str  # the adapter and what this machine calls it; never changes
    environment_path: str  # where the agent finds packages; empty without any
    files_path: str  # where it finds lent files; empty without an exchange
    output_path: str  # the file that it may write, of any size

    def ask(
        self, header: Header, body: bytes, on_answer: OnAnswer, *, reply_bytes_max: int
    ) -> None:
        """Send one frame and call `on_answer` from the loop with its reply or SandboxDied.

        Never before this returns.
        """

    def share(self, *, reply_bytes_max: int) -> SharedCalls:
        """Allow several concurrent calls from now on; the loaded code must support that."""

    def usage(self) -> SandboxUsage:
        """Return the usage so far, as counted by the kernel; zeros if it does not count."""

    async def kill(self, *, grace_s: float = 0.0) -> SandboxUsage:
        """Kill every process inside; with a grace period, send SIGTERM to the agent first."""

    def alive(self) -> bool:
        """Return whether the sandbox still runs."""

    @property
    def ended(self) -> asyncio.Future[int]:
        """Done once the sandbox has ended, with its exit status."""


class SandboxHost(Protocol):
    """Starts sandboxes of one tier."""

    tier: Tier
    networks: Sequence[Reach]  # the kinds of network access that it offers besides none

    async def start(self, spec: SandboxSpec) -> Sandbox:
        """Start a sandbox whose agent is ready to load code; raises SandboxDied."""

    async def living(self) -> set[UUID]:
        """Return the ids of this home's existing sandboxes, whoever started them."""

    async def strays(self) -> set[UUID]:
        """Return those that this host does not know, so that nothing else would end them."""

    async def remove(self, sandbox_id: UUID) -> None:
        """End a sandbox that nobody here wants."""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python found on this machine."""

    version: str
    executable: Path
    prefix: Path
    agent: Path = field(default=Path())


def status_text(status: int) -> str:
    """Describe how a process ended: by a signal, or with a status."""
    number = -status if status < 0 else status - 128
    if number > 0:
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(number).name}"
    return f"exit status {status}"
