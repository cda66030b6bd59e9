"""The cache: a dead, wrong or hostile Redis is a miss."""

from __future__ import annotations

from structlog.testing import capture_logs

from services.kit.cache import Cache
from services.standalone.redis import Redis

_PATIENT_S = 10.0  # where Redis is there and its silence would be the machine's


async def test_a_value_is_kept_and_forgotten(redis_url: str) -> None:
    cache = Cache(redis_url, timeout_s=_PATIENT_S)
    assert None is await cache.get("k")
    await cache.set("k", b"\0v", 10)
    assert await cache.get("k") == b"\0v"
    await cache.delete("k")
    assert None is await cache.get("k")
    await cache.close()


async def test_without_redis_everything_is_a_miss() -> None:
    cache = Cache(None)
    await cache.set("k", b"v", 10)
    assert None is await cache.get("k")
    await cache.close()


async def test_a_dead_redis_is_a_miss_that_is_logged_once(redis_server: Redis) -> None:
    """F20, G7."""
    cache = Cache(redis_server.url, timeout_s=_PATIENT_S)
    await cache.set("k", b"v", 10)
    redis_server.stop()
    with capture_logs() as lines:
        for _ in range(20):
            assert None is await cache.get("k")
            await cache.set("k", b"v", 10)
            await cache.delete("k")
    assert [line["event"] for line in lines] == ["cache_lost"]
    await cache.close()


async def test_the_cache_comes_back_after_an_outage(redis_server: Redis) -> None:
    now = 0.0
    cache = Cache(redis_server.url, clock=lambda: now, timeout_s=_PATIENT_S)
    redis_server.stop()
    assert None is await cache.get("k")
    redis_server.start()
    await cache.set("k", b"v", 10)  # still resting
    now = 1.0
    with capture_logs() as lines:
        assert None is await cache.get("k")
    assert [line["event"] for line in lines] == ["cache_recovered"]
    await cache.set("k", b"v", 10)
    assert await cache.get("k") == b"v"
    await cache.close()


async def test_data_of_another_type_is_a_miss(redis_server: Redis) -> None:
    """F21."""
    redis_server.command("LPUSH k x")
    cache = Cache(redis_server.url, timeout_s=_PATIENT_S)
    assert None is await cache.get("k")
    await cache.close()


async def test_a_nonsensical_address_is_a_miss() -> None:
    cache = Cache("redis://127.0.0.1:1/0")
    assert None is await cache.get("k")
    await cache.close()
