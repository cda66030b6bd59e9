"""How long sign-ins wait after failures, and who can make whom wait."""

from __future__ import annotations

import pytest

from services.registry.domain.lockout import (
    PAIR_TRIES,
    PAIR_WAIT_MAX_S,
    PEER_TRIES,
    PEER_WAIT_MAX_S,
    QUIET_S,
    SUSPECT_FAILURES,
    Count,
    keys_of,
    wait_s,
)

NONE = Count(0, QUIET_S)


@pytest.mark.parametrize(
    ("failures", "expected"),
    [(0, 0), (PAIR_TRIES - 1, 0), (PAIR_TRIES, 1), (PAIR_TRIES + 3, 8), (10**9, PAIR_WAIT_MAX_S)],
)
def test_the_wait_doubles_with_each_failure_and_is_bounded(failures: int, expected: float) -> None:
    """X51."""
    assert expected == wait_s(pair=Count(failures, 0.0), peer=NONE, address=NONE)


def test_time_that_has_passed_counts_and_a_quiet_hour_begins_anew() -> None:
    assert wait_s(pair=Count(PAIR_TRIES + 3, 3.0), peer=NONE, address=NONE) == 5.0
    assert wait_s(pair=Count(PAIR_TRIES + 3, 8.0), peer=NONE, address=NONE) == 0.0
    assert wait_s(pair=Count(10**6, QUIET_S), peer=NONE, address=NONE) == 0.0


def test_a_peer_that_tries_many_addresses_waits_too() -> None:
    assert wait_s(pair=NONE, peer=Count(PEER_TRIES - 1, 0.0), address=NONE) == 0.0
    assert wait_s(pair=NONE, peer=Count(PEER_TRIES + 1, 0.0), address=NONE) == 2.0
    assert wait_s(pair=NONE, peer=Count(10**6, 0.0), address=NONE) == PEER_WAIT_MAX_S


@pytest.mark.parametrize("failures", [SUSPECT_FAILURES, 10**9])
def test_failures_from_everywhere_make_nobody_wait_who_did_not_fail(failures: int) -> None:
    """X51: so that nobody is locked out by strangers."""
    everywhere = Count(failures, 0.0)
    assert wait_s(pair=NONE, peer=NONE, address=everywhere) == 0.0
    assert wait_s(pair=Count(1, 0.0), peer=NONE, address=everywhere) == 1.0
    assert wait_s(pair=Count(1, 0.0), peer=NONE, address=NONE) == 0.0


def test_no_two_subjects_share_a_key() -> None:
    found = [keys_of(address, peer).all for address in ("a", "ab", "") for peer in ("b", "", "a")]
    pairs = {pair for pair, _, _ in found}
    assert len(pairs) == len(found)
    assert len({key for keys in found for key in keys}) == len(pairs) + 3 + 3
