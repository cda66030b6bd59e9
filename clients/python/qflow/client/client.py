"""The asynchronous, typed client.

async with qflow.connect() as client:
    run = await client.start(twice, 3)
    async for change in run.watch():
        ...
    print(await run.result())
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from qflow import values
from qflow.authoring.node import Node
from qflow.authoring.workflow import Workflow
from qflow.changing import changed
from qflow.client import contexts, starting
from qflow.client.connection import Connection
from qflow.client.contexts import Context
from qflow.client.files import Files
from qflow.client.push import Pusher
from qflow.client.runs import Reading, Run
from qflow.client.starting import StartOptions
from qflow.errors import CallError, InvalidArgumentError, from_status
from qflow.exceptions import AuthoringError
from qflow.orchestrator.v1 import (
    execution_pb2,
    execution_service_pb2,
    execution_service_pb2_grpc,
)
from qflow.registry.v1 import (
    node_pb2,
    node_service_pb2,
    node_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
    workflow_pb2,
    workflow_service_pb2,
    workflow_service_pb2_grpc,
)
from qflow.types import ANY, Type, from_text

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class _Pushed:
    """A stored workflow, and the codecs of its values."""

    workflow: Workflow[..., Any]  # kept alive, since it is found by its identity
    stored: workflow_pb2.Workflow
    inputs: Mapping[str, values.Codec]
    reading: Reading


class Client:
    """A client of a Qflow as one caller, opened with `connect`."""

    def __init__(
        self,
        context: Context,
        *,
        options: StartOptions | None = None,
        connection: Connection | None = None,
    ) -> None:
        self.context = context
        self.connection = connection or Connection(context)
        self.files = Files(self.connection)
        self._options = options or StartOptions()
        self._pushed: dict[int, _Pushed] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self.connection.close()

    def options(self, **changes: Any) -> Client:
        """Return this client with other `StartOptions`."""
        options = changed(self._options, changes)
        made = Client(self.context, options=options, connection=self.connection)
        made._pushed = self._pushed  # shared: it is the same client with other options
        return made

    async def caller(self) -> session_service_pb2.Caller:
        """Return who the calls are made as."""
        stub = self.connection.stub("registry", session_service_pb2_grpc.SessionServiceStub)
        answer = await self._registry(stub.GetCaller, session_service_pb2.GetCallerRequest())
        caller: session_service_pb2.Caller = answer.caller
        return caller

    async def push_node(self, node: Node[..., Any]) -> node_pb2.Node:
        """Store a node; the same source changes nothing, another makes a new version."""
        return await Pusher(self.connection).node(node)

    async def push(self, workflow: Workflow[..., Any]) -> workflow_pb2.Workflow:
        """Store a workflow with its nodes and activate it; idempotent.

        Raises `Refused` with all findings if an edge or a place does not fit.
        """
        stored = await Pusher(self.connection).workflow(workflow)
        self._pushed[id(workflow)] = _Pushed(
            workflow, stored, _codecs(workflow), _reading(workflow, stored)
        )
        return stored

    async def start(self, workflow: Workflow[P, R], *args: P.args, **kwargs: P.kwargs) -> Run[R]:
        """Start a run of a workflow written in Python; stores it first, once per client."""
        if id(workflow) not in self._pushed:
            await self.push(workflow)
        pushed = self._pushed[id(workflow)]
        text = _text(pushed.inputs, workflow.bind(*args, **kwargs))
        stored, reading = pushed.stored, pushed.reading
        return await self._start(stored.id, stored.version, text, reading)

    async def run(self, workflow: Workflow[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Start a run and wait for its result: a typed, durable function call."""
        run = await self.start(workflow, *args, **kwargs)
        return await run.result()

    async def start_many(
        self,
        workflow: Workflow[..., R],
        inputs: Iterable[Mapping[str, Any]],
        *,
        business_keys: Sequence[str] = (),
    ) -> list[Run[R] | CallError]:
        """Start a run for each of the inputs, given by name; up to a thousand per call.

        Returns for each, in order, the run or the error, even of inputs that cannot be encoded; an
        error does not affect the others. With a `request_id` in the options, a repetition returns
        the same runs.
        """
        if id(workflow) not in self._pushed:
            await self.push(workflow)
        pushed = self._pushed[id(workflow)]
        texts = _written(lambda each: _text(pushed.inputs, workflow.bind(**each)), inputs)
        stored, reading = pushed.stored, pushed.reading
        return await self._start_many(
            stored.id, stored.version, texts, reading, business_keys=business_keys
        )

    async def start_stored(
        self,
        workflow_id: str,
        inputs: Mapping[str, Any] | None = None,
        *,
        version: int = 0,
        alias: str = "",
    ) -> Run[dict[str, Any]]:
        """Start a run of a stored workflow, by id and version or alias, with inputs by name."""
        stored = await self.workflow(workflow_id, version=0 if alias else version)
        text = _stored_text(stored, _stored_codecs(stored), inputs or {})
        reading = Reading(_output_types(stored))
        return await self._start(workflow_id, version, text, reading, alias=alias)

    async def start_many_stored(
        self,
        workflow_id: str,
        inputs: Iterable[Mapping[str, Any]],
        *,
        version: int = 0,
        alias: str = "",
        business_keys: Sequence[str] = (),
    ) -> list[Run[dict[str, Any]] | CallError]:
        """Start many runs of a stored workflow; see `start_many`."""
        stored = await self.workflow(workflow_id, version=0 if alias else version)
        codecs = _stored_codecs(stored)
        texts = _written(lambda each: _stored_text(stored, codecs, each), inputs)
        reading = Reading(_output_types(stored))
        return await self._start_many(
            workflow_id, version, texts, reading, alias=alias, business_keys=business_keys
        )

    async def _start(
        self, workflow_id: str, version: int, text: str, reading: Reading, *, alias: str = ""
    ) -> Run[Any]:
        request = starting.request(self._options, workflow_id, version, alias, text)
        answer = await self._orchestrator("StartExecution", request)
        return Run(self.connection, answer.execution.id, reading)

    async def _start_many(
        self,
        workflow_id: str,
        version: int,
        texts: Sequence[str | CallError],
        reading: Reading,
        *,
        alias: str = "",
        business_keys: Sequence[str] = (),
    ) -> list[Run[Any] | CallError]:
        several = starting.each_options(self._options, len(texts), business_keys)
        starts = [
            starting.request(options, workflow_id, version, alias, text)
            for options, text in zip(several, texts, strict=True)
            if isinstance(text, str)
        ]
        begun: list[Run[Any] | CallError] = []
        for request in starting.batches(starts):
            answer = await self._orchestrator("BatchStartExecutions", request)
            begun += [
                from_status(item.status)
                if item.status.code
                else Run(self.connection, item.execution_id, reading)
                for item in answer.items
            ]
        answered = iter(begun)
        return [next(answered) if isinstance(text, str) else text for text in texts]

    def attach(self, execution_id: str) -> Run[dict[str, Any]]:
        """Return a run that was started before; its outputs are plain JSON values."""
        return Run(self.connection, execution_id)

    async def node(self, node_id: str, *, version: int = 0) -> node_pb2.Node:
        """Return a stored node."""
        stub = self.connection.stub("registry", node_service_pb2_grpc.NodeServiceStub)
        request = node_service_pb2.GetNodeRequest(node_id=node_id, version=version)
        node: node_pb2.Node = (await self._registry(stub.GetNode, request)).node
        return node

    async def nodes(self, filter: str = "") -> AsyncIterator[node_pb2.Node]:
        """Yield the nodes that match a filter."""
        stub = self.connection.stub("registry", node_service_pb2_grpc.NodeServiceStub)
        request = node_service_pb2.ListNodesRequest(filter=filter, page_size=200)
        pages = self.connection.pages(
            stub.ListNodes, request, "nodes", address=self.context.registry
        )
        async for each in pages:
            yield each

    async def workflow(self, workflow_id: str, *, version: int = 0) -> workflow_pb2.Workflow:
        """Return a stored workflow."""
        stub = self.connection.stub("registry", workflow_service_pb2_grpc.WorkflowServiceStub)
        request = workflow_service_pb2.GetWorkflowRequest(workflow_id=workflow_id, version=version)
        workflow: workflow_pb2.Workflow = (await self._registry(stub.GetWorkflow, request)).workflow
        return workflow

    async def workflows(self, filter: str = "") -> AsyncIterator[workflow_pb2.Workflow]:
        """Yield the workflows that match a filter."""
        stub = self.connection.stub("registry", workflow_service_pb2_grpc.WorkflowServiceStub)
        request = workflow_service_pb2.ListWorkflowsRequest(filter=filter, page_size=200)
        pages = self.connection.pages(
            stub.ListWorkflows, request, "workflows", address=self.context.registry
        )
        async for each in pages:
            yield each

    async def runs(self, filter: str = "") -> AsyncIterator[execution_pb2.Execution]:
        """Yield the runs that match a filter, newest first."""
        stub = self.connection.stub("orchestrator", execution_service_pb2_grpc.ExecutionServiceStub)
        request = execution_service_pb2.ListExecutionsRequest(filter=filter, page_size=100)
        pages = self.connection.pages(
            stub.ListExecutions, request, "executions", address=self.context.orchestrator
        )
        async for each in pages:
            yield each

    async def _orchestrator(self, method: str, request: Any) -> Any:
        stub = self.connection.stub("orchestrator", execution_service_pb2_grpc.ExecutionServiceStub)
        address = self.context.orchestrator
        return await self.connection.call(getattr(stub, method), request, address=address)

    async def _registry(self, method: Any, request: Any) -> Any:
        return await self.connection.call(method, request, address=self.context.registry)


def connect(context: Context | None = None, *, name: str = "", home: str = "") -> Client:
    """Open a client for a context, given as such, by name, or by a suite's home, or found.

    See `qflow.client.contexts` for where a context is searched. No call is made yet.
    """
    return Client(context or contexts.find(name=name, home=home))


def _output_types(stored: workflow_pb2.Workflow) -> dict[str, Type]:
    return {
        each.name: from_text(each.type_json) if each.type_json else ANY
        for each in stored.definition.outputs
    }


def input_types(stored: workflow_pb2.Workflow) -> dict[str, Type]:
    """Return the declared types of a stored workflow's inputs."""
    return {
        each.name: from_text(each.type_json) if each.type_json else ANY
        for each in stored.definition.inputs
    }


def _written(
    write: Callable[[Mapping[str, Any]], str], inputs: Iterable[Mapping[str, Any]]
) -> list[str | CallError]:
    """Encode the inputs of many runs; those that do not fit become errors."""
    texts: list[str | CallError] = []
    for given in inputs:
        try:
            texts.append(write(given))
        except (AuthoringError, values.ValueTypeError) as error:
            texts.append(InvalidArgumentError(str(error), reason="INPUT_INVALID"))
    return texts


def _stored_codecs(stored: workflow_pb2.Workflow) -> dict[str, values.Codec]:
    return {name: values.Codec(of) for name, of in input_types(stored).items()}


def _stored_text(
    stored: workflow_pb2.Workflow, codecs: Mapping[str, values.Codec], given: Mapping[str, Any]
) -> str:
    """Encode inputs by the declared types of a stored workflow."""
    unknown = sorted(given.keys() - codecs.keys())
    if unknown:
        there = ", ".join(codecs) or "none"
        raise AuthoringError(f"{stored.name} has no input {unknown[0]!r} (there: {there})")
    return _text(codecs, given)


def _text(codecs: Mapping[str, values.Codec], given: Mapping[str, Any]) -> str:
    return values.dump(
        {name: codecs[name].to_plain(value, name=f"input {name}") for name, value in given.items()}
    )


def _codecs(workflow: Workflow[..., Any]) -> dict[str, values.Codec]:
    """Return the codecs of the inputs, by their annotations."""
    return {
        each.name: values.Codec(each.type, values.classes_in(workflow.hints.get(each.name)))
        for each in workflow.graph.inputs
    }


def _reading(workflow: Workflow[..., Any], stored: workflow_pb2.Workflow) -> Reading:
    """Return how to decode the outputs to the return type of the function."""
    classes: dict[str, Any] = {}
    for place in workflow.graph.places:
        if isinstance(place.runs, Node):
            classes.update(values.classes_in(place.runs.hints.get("return")))
    classes.update(values.classes_in(workflow.hints.get("return")))
    return Reading(_output_types(stored), classes, workflow.shaped)
