"""The transport of an Attach stream's frames: the stream itself, or a lane (unix socket)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog
from google.protobuf.message import DecodeError
from qflow.orchestrator.v1 import attach_service_pb2 as pb

from services.kit.errors import InvalidArgument
from services.kit.lane import Lane, LaneLost, Lanes
from services.orchestrator.engine.streams import Stream

log = structlog.get_logger()

ROOM_CHECK_S: Final = 0.02


class Way:
    """Offers a runner a lane, and uses it if the runner chooses it.

    Between the welcome and the runner's choice nothing is sent and nothing is read from the lane,
    so that frames stay in order.
    """

    def __init__(
        self,
        stream: Stream,
        lanes: Lanes | None,
        *,
        take: Callable[[pb.AttachRequest], None],
        is_behind: Callable[[], bool],
    ) -> None:
        """`take` receives frames of the lane; nothing is read from it while `is_behind()`."""
        self._stream = stream
        self._lanes = lanes
        self._place = None if lanes is None else lanes.promise()
        self._take = take
        self._is_behind = is_behind
        self._chosen: asyncio.Future[Lane | None] = asyncio.get_running_loop().create_future()
        if self._place is None:
            self._chosen.set_result(None)

    def offer(self) -> pb.RunnerLane | None:
        """Return the lane to offer in the welcome; None if there is none."""
        if self._place is None:
            return None
        place = self._place
        return pb.RunnerLane(path=place.path, key=place.key, answer=place.answer)

    async def chosen(self) -> Lane | None:
        """Wait for the runner's choice or its end; None if it stays with the stream."""
        return await self._chosen

    def choose(self, frame: pb.AttachRequest) -> None:
        """Handle the runner's choice of transport, a frame of the stream."""
        lane = self._place.lane if self._place is not None and frame.lane else None
        if self._chosen.done() or (frame.lane and lane is None):
            raise InvalidArgument(
                "LANE_MISSING",
                "lane: must be set once, after a lane was offered and, if true, entered; "
                "the stream may carry nothing after it",
            )
        self._chosen.set_result(lane)
        log.info("runner_speaks", incarnation=str(self._stream.runner), lane=lane is not None)
        if lane is None:
            self.close()
        else:
            self._stream.by_lane = True
            lane.ended.add_done_callback(lambda _: self._stream.close())
            lane.listen(partial(self._hear, lane))

    def close(self) -> None:
        """Close the lane, and withdraw the offer."""
        self.nothing_comes()
        if self._lanes is not None and self._place is not None:
            self._lanes.withdraw(self._place)

    def nothing_comes(self) -> None:
        """Stop waiting for a choice: the stream has ended."""
        if not self._chosen.done():
            self._chosen.set_result(None)

    def tell(self) -> None:
        """Raise the fault that ended the lane, if there was one."""
        lane = None if self._place is None else self._place.lane
        if lane is None or lane.fault is None:
            return
        log.warning("lane_fault", incarnation=str(self._stream.runner), cause=str(lane.fault))
        if isinstance(lane.fault, LaneLost):
            raise InvalidArgument("MALFORMED_REQUEST", str(lane.fault))
        raise lane.fault

    def _hear(self, lane: Lane, raw: bytes) -> None:
        if self._stream.closed:
            return
        try:
            frame = pb.AttachRequest.FromString(raw)
        except (DecodeError, UnicodeDecodeError, RecursionError, ValueError):
            raise InvalidArgument(
                "MALFORMED_REQUEST",
                "what the lane received is not a qflow.orchestrator.v1.AttachRequest",
            ) from None
        self._take(frame)
        if self._is_behind():
            lane.hold()  # backpressure: the runner waits while nothing is read
            self._go_on(lane)

    def _go_on(self, lane: Lane) -> None:
        loop = asyncio.get_running_loop()
        if self._is_behind():
            loop.call_later(ROOM_CHECK_S, self._go_on, lane)
        else:
            loop.call_soon(lane.go_on)  # not from within its own callback
