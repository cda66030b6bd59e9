"""The lock of a home: one process of a kind at a time, and a word on who is in the way."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from services.kit.env import EnvError
from services.kit.home_lock import lock_home


async def test_who_finds_a_home_locked_gives_up_in_time_and_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "run" / "runner.lock"
    lock = await lock_home(path, refusal="stop it", wait_s=0, poll_s=0.01)
    with pytest.raises(EnvError, match="stop it"):
        await lock_home(path, refusal="stop it", wait_s=0, poll_s=0.01)
    os.close(lock)
    os.close(await lock_home(path, refusal="stop it", wait_s=0, poll_s=0.01))


async def test_who_stands_by_has_the_lock_once_its_holder_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "orchestrator.lock"
    lock = await lock_home(path, refusal="", wait_s=None, poll_s=0.01)
    waits = asyncio.Event()
    standby = asyncio.create_task(
        lock_home(path, refusal="", wait_s=None, poll_s=0.01, on_wait=waits.set)
    )
    await waits.wait()
    assert not standby.done()
    os.close(lock)
    os.close(await standby)
