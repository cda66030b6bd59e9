"""A Ray cluster: its machines, and the runners requested on it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog

from services.kit.env import EnvError
from services.runner.domain.limits import Tier, meets
from services.runner.domain.placing import TIER_LABEL, Machine, Placed, Size
from services.runner.gateways.ray.actor import RunnerActor

log = structlog.get_logger()

_NAMESPACE: Final = "qflow"
_NAME: Final = "runner-"
# Concurrent calls of an actor. Some never return, one per process that finds the actor again.
_CALLS: Final = 1000


@dataclass(slots=True)
class _Runner:
    """A requested actor."""

    size: Size
    handle: Any
    size_told: asyncio.Future[Any]
    ready: asyncio.Future[Any]
    over: asyncio.Future[Any]


class RayCluster:
    """Starts runners as actors. They outlive this process, whose successor finds them again."""

    def __init__(self, ray: Any, *, on_change: Callable[[], None]) -> None:
        self._ray = ray
        self._actor = ray.remote(RunnerActor)
        self._on_change = on_change
        self._runners: dict[str, _Runner] = {}

    @classmethod
    async def open(cls, address: str, *, on_change: Callable[[], None]) -> RayCluster:
        """Connect to the cluster; raises EnvError if it does not answer, or Ray is missing."""
        # Otherwise Ray would start workers by `uv run` if this process was started that way.
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            # Imported late: it takes a second, and most deployments do not use it.
            import ray
        except ImportError:
            raise EnvError(
                "QFLOW_RUNNER_PLACEMENT=ray needs Ray: install the group requirements/ray.lock"
            ) from None
        try:
            await asyncio.to_thread(
                ray.init, address=address, namespace=_NAMESPACE, log_to_driver=False
            )
        except (ConnectionError, RuntimeError, ValueError) as problem:
            raise EnvError(f"no Ray cluster responds at QFLOW_RAY_ADDRESS: {problem}") from None
        cluster = cls(ray, on_change=on_change)
        await cluster.find()
        return cluster

    async def close(self) -> None:
        """Disconnect from the cluster; the runners keep running."""
        for runner in self._runners.values():
            for answer in (runner.size_told, runner.ready, runner.over):
                answer.cancel()
        await asyncio.to_thread(self._ray.shutdown)

    async def machines(self) -> list[Machine]:
        """Return the machines that exist now."""
        return [_machine(each) for each in await self._nodes()]

    async def others(self) -> list[str]:
        """Return the host names of all machines but this one."""
        here = socket.gethostname()
        names = {str(each["NodeManagerHostname"]) for each in await self._nodes()}
        return sorted(names - {here})

    async def _nodes(self) -> list[Mapping[str, Any]]:
        return [each for each in await asyncio.to_thread(self._ray.nodes) if each["Alive"]]

    def placed(self) -> list[Placed]:
        """Return the runners that were requested and have not ended."""
        return [
            Placed(name=name, size=each.size, begun=each.size_told.done(), ready=each.ready.done())
            for name, each in self._runners.items()
        ]

    async def start(self, size: Size, settings: Mapping[str, str]) -> str:
        """Request a runner; return its name. Without a free machine the request waits."""
        name = f"{_NAME}{uuid.uuid4()}"
        actor = self._actor.options(name=name, **_options(size))
        handle = await asyncio.to_thread(actor.remote, json.dumps(size))
        labels = ",".join(f"{label}={value}" for label, value in size.labels)
        self._keep(
            name, size, handle, handle.hold.remote(dict(settings), labels, socket.gethostname())
        )
        return name

    async def withdraw(self, name: str) -> None:
        """Withdraw a runner."""
        runner = self._runners.pop(name, None)
        if runner is not None:
            await asyncio.to_thread(self._ray.kill, runner.handle)

    async def find(self) -> None:
        """Find runners that were requested before this process started."""
        names = await asyncio.to_thread(self._ray.util.list_named_actors)
        for name in names:
            if not name.startswith(_NAME) or name in self._runners:
                continue
            try:
                handle = await asyncio.to_thread(self._ray.get_actor, name)
                told = await asyncio.wait_for(
                    asyncio.wrap_future(handle.size.remote().future()), timeout=5
                )
            except TimeoutError:
                # It got no machine: if it is still needed, it is requested again.
                await asyncio.to_thread(self._ray.kill, handle)
            except (ValueError, self._ray.exceptions.RayError):
                log.info("ray_runner_gone", runner=name)
            else:
                self._keep(name, _size(told), handle, handle.watch.remote())
                log.info("ray_runner_found", runner=name)

    def _keep(self, name: str, size: Size, handle: Any, over: Any) -> None:
        runner = _Runner(
            size,
            handle,
            asyncio.wrap_future(handle.size.remote().future()),
            asyncio.wrap_future(handle.ready.remote().future()),
            asyncio.wrap_future(over.future()),
        )
        self._runners[name] = runner
        runner.size_told.add_done_callback(self._changed)
        runner.ready.add_done_callback(self._changed)
        runner.over.add_done_callback(lambda done: self._ended(name, done))

    def _changed(self, done: asyncio.Future[Any]) -> None:
        if not done.cancelled():
            done.exception()  # reported when it ends
        self._on_change()

    def _ended(self, name: str, done: asyncio.Future[Any]) -> None:
        if done.cancelled():
            return
        problem = done.exception()
        if self._runners.pop(name, None) is not None:
            log.info("ray_runner_ended", runner=name, fault=type(problem).__name__)
        self._on_change()


def _options(size: Size) -> dict[str, Any]:
    selector = dict(size.labels)
    if size.tier:
        enough = [each.value for each in Tier if meets(each, Tier(size.tier))]
        selector[TIER_LABEL] = f"in({', '.join(enough)})" if len(enough) > 1 else enough[0]
    return {
        "lifetime": "detached",
        "max_restarts": 0,  # if it is still needed, it is requested again
        "max_concurrency": _CALLS,
        "num_cpus": size.cpus,
        "num_gpus": size.gpus,
        "memory": size.memory_bytes,
        "label_selector": selector,
        "enable_task_events": False,
    }


def _machine(node: Mapping[str, Any]) -> Machine:
    resources: Mapping[str, float] = node["Resources"]
    return Machine(
        cpus=int(resources.get("CPU", 0)),
        memory_bytes=int(resources.get("memory", 0)),
        gpus=int(resources.get("GPU", 0)),
        labels={
            name: value
            for name, value in (node.get("Labels") or {}).items()
            if not name.startswith("ray.io/")
        },
    )


def _size(told: str) -> Size:
    cpus, memory_bytes, gpus, labels, tier = json.loads(told)
    return Size(cpus, memory_bytes, gpus, tuple((name, value) for name, value in labels), tier)
