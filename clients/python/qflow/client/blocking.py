"""The client for programs without asyncio: the same calls, blocking."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, TypeVar

from qflow.authoring.workflow import Workflow
from qflow.client.client import Client, connect
from qflow.client.contexts import Context
from qflow.client.runs import Change, Run
from qflow.errors import CallError
from qflow.orchestrator.v1 import execution_pb2
from qflow.registry.v1 import node_pb2, workflow_pb2

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="qflow-client", daemon=True
        )
        self._thread.start()

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C ends the call, not the loop
            raise

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        async def following() -> tuple[T, ...]:
            try:
                return (await anext(items),)
            except StopAsyncIteration:
                return ()

        while found := self.wait(following()):
            yield found[0]

    def stop(self) -> None:
        self.wait(self._loop.shutdown_asyncgens())  # unfinished watches
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class BlockingRun(Generic[R]):
    """A run with blocking calls; `run` is the asynchronous one."""

    def __init__(self, loop: _Loop, run: Run[R]) -> None:
        self._loop = loop
        self.run = run
        self.id = run.id

    def result(self, *, timeout_s: float | None = None) -> R:
        """Wait for the end and return the result; see `Run.result`."""
        return self._loop.wait(self.run.result(timeout_s=timeout_s))

    def wait(self, *, timeout_s: float | None = None) -> execution_pb2.Execution:
        """Wait until the run has ended, however it ended, and return it."""
        return self._loop.wait(self.run.wait(timeout_s=timeout_s))

    def watch(self) -> Iterator[Change]:
        """Yield the changes of the run until it has ended."""
        return self._loop.iterate(self.run.watch())

    def cancel(self) -> execution_pb2.Execution:
        """Request cancellation of the run."""
        return self._loop.wait(self.run.cancel())

    def signal(self, name: str, value: Any) -> None:
        """Send a signal."""
        self._loop.wait(self.run.signal(name, value))

    def answer(self, name: str, *, approved: bool, comment: str = "") -> None:
        """Answer an approval."""
        self._loop.wait(self.run.answer(name, approved=approved, comment=comment))


class BlockingClient:
    """A client with blocking calls; `client` is the asynchronous one, for calls missing here."""

    def __init__(self, context: Context | None = None, *, name: str = "", home: str = "") -> None:
        self._closed = False
        self._loop = _Loop()
        try:
            self.client: Client = self._loop.wait(_opened(context, name, home))
        except BaseException:
            self._loop.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; idempotent."""
        if not self._closed:
            self._closed = True
            self._loop.wait(self.client.close())
            self._loop.stop()

    def options(self, **changes: Any) -> Self:
        """Return this client with other `StartOptions`.

        It is closed with this one, and by nothing else.
        """
        made = copy.copy(self)
        made.client = self.client.options(**changes)
        made._closed = True  # noqa: SLF001  # of its own class
        return made

    def push(self, workflow: Workflow[..., Any]) -> workflow_pb2.Workflow:
        """Store a workflow with its nodes; idempotent."""
        return self._loop.wait(self.client.push(workflow))

    def run(self, workflow: Workflow[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Start a run and wait for its result."""
        return self._loop.wait(self.client.run(workflow, *args, **kwargs))

    def start(self, workflow: Workflow[P, R], *args: P.args, **kwargs: P.kwargs) -> BlockingRun[R]:
        """Start a run of a workflow written in Python."""
        run = self._loop.wait(self.client.start(workflow, *args, **kwargs))
        return BlockingRun(self._loop, run)

    def start_many(
        self,
        workflow: Workflow[..., R],
        inputs: Iterable[Mapping[str, Any]],
        *,
        business_keys: Sequence[str] = (),
    ) -> list[BlockingRun[R] | CallError]:
        """Start a run for each of the inputs, up to a thousand a call; see `Client.start_many`."""
        begun = self._loop.wait(
            self.client.start_many(workflow, inputs, business_keys=business_keys)
        )
        return self._each(begun)

    def _each(self, begun: Iterable[Run[R] | CallError]) -> list[BlockingRun[R] | CallError]:
        return [
            each if isinstance(each, CallError) else BlockingRun(self._loop, each) for each in begun
        ]

    def start_stored(
        self,
        workflow_id: str,
        inputs: Mapping[str, Any] | None = None,
        *,
        version: int = 0,
        alias: str = "",
    ) -> BlockingRun[dict[str, Any]]:
        """Start a run of a stored workflow, by id and version or alias."""
        run = self._loop.wait(
            self.client.start_stored(workflow_id, inputs, version=version, alias=alias)
        )
        return BlockingRun(self._loop, run)

    def start_many_stored(
        self,
        workflow_id: str,
        inputs: Iterable[Mapping[str, Any]],
        *,
        version: int = 0,
        alias: str = "",
        business_keys: Sequence[str] = (),
    ) -> list[BlockingRun[dict[str, Any]] | CallError]:
        """Start many runs of a stored workflow; see `start_many`."""
        begun = self._loop.wait(
            self.client.start_many_stored(
                workflow_id, inputs, version=version, alias=alias, business_keys=business_keys
            )
        )
        return self._each(begun)

    def attach(self, execution_id: str) -> BlockingRun[dict[str, Any]]:
        """Return a run that was started before."""
        return BlockingRun(self._loop, self._loop.wait(_attached(self.client, execution_id)))

    def nodes(self, filter: str = "") -> Iterator[node_pb2.Node]:
        """Yield the nodes that match a filter."""
        return self._loop.iterate(self.client.nodes(filter))

    def workflows(self, filter: str = "") -> Iterator[workflow_pb2.Workflow]:
        """Yield the workflows that match a filter."""
        return self._loop.iterate(self.client.workflows(filter))

    def runs(self, filter: str = "") -> Iterator[execution_pb2.Execution]:
        """Yield the runs that match a filter, newest first."""
        return self._loop.iterate(self.client.runs(filter))


def connect_blocking(
    context: Context | None = None, *, name: str = "", home: str = ""
) -> BlockingClient:
    """Open a client with blocking calls; see `connect`."""
    return BlockingClient(context, name=name, home=home)


async def _attached(client: Client, execution_id: str) -> Run[dict[str, Any]]:
    # Within the loop, as below: this may open a channel.
    return client.attach(execution_id)


async def _opened(context: Context | None, name: str, home: str) -> Client:
    # Within the loop: a channel belongs to the loop in which it was opened.
    return connect(context, name=name, home=home)
