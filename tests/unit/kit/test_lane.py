"""Lanes: who comes in, what is handed on, and how each end holds the other back."""

# ruff: noqa: ASYNC240  # the files are this test's own, and few
from __future__ import annotations

import asyncio
import shutil
import socket
import stat
import struct
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.kit import lane as kit
from services.kit.lane import UNREAD_BYTES_MAX, Lane, LaneLost, Lanes, Place, enter
from services.kit.rpc.listener import MESSAGE_BYTES_MAX


@pytest.fixture
def path() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="qfl-", dir="/tmp"))
    yield folder / "attach.lane"
    shutil.rmtree(folder)


_OPEN: list[Lane] = []


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Lanes]:
    lanes = await Lanes.open(path)
    try:
        yield lanes
    finally:
        lanes.close()
        while _OPEN:
            _OPEN.pop().end()
        await asyncio.sleep(0.02)


def promised(lanes: Lanes) -> Place:
    place = lanes.promise()
    assert place is not None
    return place


async def both(lanes: Lanes) -> tuple[Lane, Lane]:
    """Give the ends of a lane: that of the listener, and that of who came."""
    place = promised(lanes)
    there = await enter(place.path, place.key, place.answer)
    assert there is not None
    assert place.lane is not None
    _OPEN.extend((place.lane, there))
    return place.lane, there


def framed(*messages: bytes) -> bytes:
    return b"".join(struct.pack("!I", len(each)) + each for each in messages)


async def has(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # sockets bring it
            await asyncio.sleep(0.005)


async def ended(lane: Lane) -> None:
    async with asyncio.timeout(30):
        await asyncio.shield(lane.ended)


async def test_messages_go_both_ways_in_order_whatever_their_size(path: Path) -> None:
    said = [
        b"",
        b"a",
        b"b" * 70_000,
        b"c",
        b"d" * MESSAGE_BYTES_MAX,
        *(b"%d" % n for n in range(99)),
    ]
    async with opened(path) as lanes:
        here, there = await both(lanes)
        for speaks, hears in ((here, there), (there, here)):
            heard: list[bytes] = []
            hears.listen(heard.append)
            for message in said:
                await speaks.send(message)
            await has(lambda heard=heard: len(heard) == len(said))
            assert said == heard
        there.end()
        await ended(here)
        assert here.fault is None


async def test_messages_are_whole_however_their_bytes_come_in(path: Path) -> None:
    said = [b"one", b"", b"three" * 100, b"4"]
    for step in (1, 3, 7, 1000):
        heard: list[bytes] = []
        lane = Lane(heard.append, bytes_max=1000)
        raw = framed(*said)
        for at in range(0, len(raw), step):
            lane.data_received(raw[at : at + step])
        assert said == heard


async def test_what_is_said_before_somebody_listens_waits_and_keeps_its_order(path: Path) -> None:
    async with opened(path) as lanes:
        here, there = await both(lanes)
        for number in range(50):
            there.put(b"%d" % number)
        await asyncio.sleep(0.05)
        heard: list[bytes] = []
        here.listen(heard.append)
        await has(lambda: len(heard) == 50)
        assert [b"%d" % number for number in range(50)] == heard


async def test_a_key_lets_one_in_once(path: Path) -> None:
    """SEC: a wrong key, one that was used and one that was withdrawn let nobody in."""
    async with opened(path) as lanes:
        place, other = promised(lanes), promised(lanes)
        assert place.key != other.key
        assert place.key not in repr(place).encode()
        assert await enter(place.path, b"x" * 32, place.answer) is None
        assert await enter(place.path, b"", place.answer) is None
        assert await enter(place.path, b"x" * 5000, place.answer) is None
        there = await enter(place.path, place.key, place.answer)
        assert there is not None
        lane = place.lane
        assert lane is not None
        _OPEN.append(there)
        assert await enter(place.path, place.key, place.answer) is None
        assert not lane.ended.done()  # of who came first
        lanes.withdraw(other)
        assert await enter(other.path, other.key, other.answer) is None
        lanes.withdraw(place)
        await ended(lane)


async def test_a_socket_that_does_not_know_the_answer_is_somebody_elses(path: Path) -> None:
    """SEC: whoever listens at that path on the runner's machine is told nothing."""
    async with opened(path) as lanes:
        place = promised(lanes)
        assert await enter(place.path, place.key, b"x" * 32) is None
        lanes.withdraw(place)


async def test_where_no_lane_is_reached_there_is_none(path: Path) -> None:
    assert await enter(str(path), b"k" * 32, b"a" * 32) is None
    path.write_text("no socket")
    assert await enter(str(path), b"k" * 32, b"a" * 32) is None
    path.unlink()
    with socket.socket(socket.AF_UNIX) as left:  # by one that was killed
        left.bind(str(path))
    assert await enter(str(path), b"k" * 32, b"a" * 32) is None
    assert await enter(f"/tmp/{'x' * 200}", b"k" * 32, b"a" * 32) is None
    assert await enter("a\0b", b"k" * 32, b"a" * 32) is None
    async with opened(path) as lanes:  # and it is no hindrance
        await both(lanes)
        assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert not path.exists()


async def test_where_none_can_begin_none_is_promised(path: Path) -> None:
    for lanes in (
        await Lanes.open(path, wanted=False),
        await Lanes.open(path.with_name("x" * 120)),
        await Lanes.open(Path("/proc/attach.lane")),
    ):
        assert lanes.promise() is None
        lanes.close()


async def test_who_shows_no_key_is_not_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kit, "_ENTER_S", 0.05)
    async with opened(path):
        reader, writer = await asyncio.open_unix_connection(str(path))
        async with asyncio.timeout(30):
            assert b"" == await reader.read()
        writer.close()
    # And who answers nothing holds up no runner.
    silent = socket.socket(socket.AF_UNIX)
    silent.bind(str(path))
    silent.listen()
    async with asyncio.timeout(30):
        assert await enter(str(path), b"k" * 32, b"a" * 32) is None
    silent.close()


async def test_a_length_beyond_the_limit_ends_the_lane_at_once(path: Path) -> None:
    async with opened(path) as lanes:
        here, there = await both(lanes)
        heard: list[bytes] = []
        here.listen(heard.append)
        there.listen(heard.append)
        with pytest.raises(LaneLost, match="at most"):
            there.put(b"x" * (MESSAGE_BYTES_MAX + 1))
        there.put(b"before")
        assert there._transport is not None
        there._transport.write(struct.pack("!I", MESSAGE_BYTES_MAX + 1))
        await ended(here)
        await ended(there)
        assert [b"before"] == heard
        assert isinstance(here.fault, LaneLost)
        assert there.fault is None
        for lane in (here, there):
            with pytest.raises(LaneLost):
                await lane.send(b"more")


async def test_what_the_listener_raises_ends_the_lane_and_is_told(path: Path) -> None:
    async with opened(path) as lanes:
        here, there = await both(lanes)
        heard: list[bytes] = []

        def take(message: bytes) -> None:
            heard.append(message)
            if message == b"bad":
                raise KeyError(message)

        here.listen(take)
        there.listen(heard.append)
        for message in (b"good", b"bad", b"late"):
            there.put(message)
        await ended(here)
        await ended(there)
        assert [b"good", b"bad"] == heard
        assert isinstance(here.fault, KeyError)


async def test_who_does_not_read_holds_back_who_writes(path: Path) -> None:
    """Neither end gathers more than a message and a bounded buffer."""
    async with opened(path) as lanes:
        here, there = await both(lanes)  # nobody listens yet
        sent = 0

        async def pour() -> None:
            nonlocal sent
            for _ in range(200):
                await there.send(b"x" * 65_536)
                sent += 1

        pouring = asyncio.create_task(pour())
        await asyncio.sleep(0.3)
        assert not pouring.done()
        assert there._transport is not None
        assert there._transport.get_write_buffer_size() <= UNREAD_BYTES_MAX + 65_540
        assert len(here._received) <= UNREAD_BYTES_MAX + 65_540
        stopped_at = sent
        sizes: list[int] = []

        def take(message: bytes) -> None:
            sizes.append(len(message))
            if len(sizes) == 3:
                here.hold()

        here.listen(take)
        await has(lambda: len(sizes) >= 3)
        await asyncio.sleep(0.1)
        assert 3 == len(sizes)
        here.go_on()
        async with asyncio.timeout(30):
            await pouring
        await has(lambda: len(sizes) == 200)
        assert stopped_at < 200


async def test_who_is_held_back_learns_of_the_end(path: Path) -> None:
    async with opened(path) as lanes:
        here, there = await both(lanes)
        waiting = asyncio.create_task(there.send(b"x" * MESSAGE_BYTES_MAX))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        here.end()
        with pytest.raises(LaneLost):
            await waiting


async def test_what_is_to_go_at_once_goes_whole_and_only_where_there_is_room(path: Path) -> None:
    async with opened(path) as lanes:
        here, there = await both(lanes)
        heard: list[bytes] = []
        there.listen(heard.append)
        assert here.put_at_once([b"one", b"", b"two"])
        async with asyncio.timeout(30):
            while len(heard) < 3:  # noqa: ASYNC110  # the loop's own callbacks bring them
                await asyncio.sleep(0.001)
        assert [b"one", b"", b"two"] == heard
        assert not here.put_at_once([b"three", b"x" * (MESSAGE_BYTES_MAX + 1)])
        there.hold()
        filling = b"x" * UNREAD_BYTES_MAX
        while here.put_at_once([filling]):
            pass
        assert not here._room.is_set()
        here.end()
        assert not here.put_at_once([b"four"])
