"""Which environments and caches go first."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.runner.domain.eviction import Kept, to_remove, total_bytes


def kept(name: str, used_at: float = 0, *, pinned: bool = False, **files: int) -> Kept:
    return Kept(
        name=name,
        is_cache=name.startswith("cache"),
        used_at=used_at,
        pinned=pinned,
        files={int(number.removeprefix("f")): size for number, size in files.items()},
    )


def names(found: list[Kept], excess_bytes: int) -> list[str]:
    return [each.name for each in to_remove(found, excess_bytes)]


def test_what_was_used_the_longest_ago_goes_first_and_no_more_than_needed() -> None:
    found = [kept("new", 3, f1=10), kept("old", 1, f2=10), kept("middle", 2, f3=10)]
    assert ["old"] == names(found, 10)
    assert ["old", "middle"] == names(found, 11)
    assert [] == names(found, 0)


def test_what_is_in_use_never_goes() -> None:
    found = [kept("used", 1, pinned=True, f1=10), kept("idle", 2, f2=10)]
    assert ["idle"] == names(found, 100)


def test_what_a_cache_alone_holds_goes_before_any_environment() -> None:
    found = [kept("old", 1, f1=10), kept("cache", 9, f1=10, f2=5)]
    assert ["cache"] == names(found, 5)


def test_a_cache_that_shares_all_it_has_stays_until_its_environment_goes() -> None:
    """Removing it would free nothing, and cost the next build its links."""
    found = [kept("old", 1, f1=10), kept("new", 2, f2=10), kept("cache", 9, f1=10, f2=10)]
    assert ["old", "cache"] == names(found, 10)
    assert 20 == total_bytes(found)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.builds(
            Kept,
            name=st.uuids().map(str),
            is_cache=st.booleans(),
            used_at=st.floats(0, 10),
            pinned=st.booleans(),
            files=st.dictionaries(st.integers(0, 20), st.just(7), max_size=8),
        ),
        max_size=8,
    ),
    st.integers(0, 200),
)
def test_enough_goes_wherever_enough_may_go(found: list[Kept], excess_bytes: int) -> None:
    gone = list(to_remove(found, excess_bytes))
    left = [each for each in found if each not in gone]
    freed = total_bytes(found) - total_bytes(left)
    assert not any(each.pinned for each in gone)
    fixed = [each for each in found if each.pinned]
    assert freed >= min(excess_bytes, total_bytes(found) - total_bytes(fixed))
