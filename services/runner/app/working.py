"""How this process gets nodes run: by itself, or by starting runners that do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import structlog

from services.kit.env import EnvError
from services.kit.run import Loop
from services.runner.domain.placing import environment_of
from services.runner.gateways.demand import watch_demand
from services.runner.loops.attach import Streams
from services.runner.loops.placing import leave_when_idle, place_runners
from services.runner.settings import RaySettings, Settings
from services.runner.usecases.desk import Desk
from services.runner.usecases.placement import Placement

log = structlog.get_logger()


def working(settings: Settings, streams: Streams, desk: Desk, pythons: Sequence[str]) -> list[Loop]:
    """Return the loops for that."""
    if settings.ray is None:
        return [
            partial(streams.hold_all, settings.attach_addresses),
            streams.drain,
            partial(leave_when_idle, desk.activity, settings.idle_exit_s),
        ]
    return [partial(_place, settings, settings.ray, pythons)]


async def _place(
    settings: Settings, ray: RaySettings, pythons: Sequence[str], stop: asyncio.Event
) -> None:
    # Imported late: only needed with Ray.
    from services.runner.gateways.ray.cluster import RayCluster

    changed = asyncio.Event()
    cluster = await RayCluster.open(ray.address, on_change=changed.set)
    try:
        others = await cluster.others()
        if others and settings.bucket is None:
            raise EnvError(
                f"QFLOW_FILES_S3_BUCKET is not set, and the cluster has {', '.join(others)} besides"
                " this machine: runners on several machines need it to share files"
            )
        placement = Placement(
            cluster,
            plain=ray.plain,
            runners_max=ray.runners_max,
            changed=changed,
            settings_of=partial(
                environment_of,
                caps=settings.caps,
                idle_s=ray.idle_exit_s,
                addresses=settings.attach_addresses,
            ),
        )
        watch = partial(
            watch_demand,
            token=settings.token,
            trust=settings.trust,
            pythons=pythons,
            machines_come=ray.machines_come,
        )
        log.info("placing_with_ray", machines=len(await cluster.machines()))
        await place_runners(placement, cluster, watch, settings.attach_addresses, stop)
    finally:
        await cluster.close()
