"""The runner's pure rules."""

from __future__ import annotations

import uuid

from services.runner.domain.environments import (
    environment_key,
    packages_in,
    plain_requirement,
    without_addresses,
)
from services.runner.domain.limits import Limits, Tier, meets
from services.runner.domain.pooling import (
    Load,
    Pace,
    WarmKey,
    may_start,
    stuck,
    worn_out,
    worth_starting,
)
from services.runner.domain.reuse import Reuse, reuse_of

LOCK = """\
idna==3.20 \\
    --hash=sha256:aaaa
typing-extensions==4.12.2 \\
    --hash=sha256:bbbb
uvicorn[standard]==0.30.0 \\
    --hash=sha256:cccc
"""


def test_a_lock_names_its_packages() -> None:
    found = [(package.name, package.version) for package in packages_in(LOCK)]
    assert [("idna", "3.20"), ("typing-extensions", "4.12.2"), ("uvicorn", "0.30.0")] == found


def test_an_environment_is_named_for_all_that_makes_it_differ() -> None:
    names = {
        environment_key(tenant_id=tenant, python_version=version, platform=platform, digest=digest)
        for tenant in (uuid.uuid4(), uuid.uuid4())
        for version in ("3.11", "3.12")
        for platform in ("linux-x86_64-glibc2.36", "linux-aarch64-glibc2.36")
        for digest in ("a", "b")
    }
    assert 16 == len(names)


def test_a_requirement_is_spelled_anew_from_its_parts() -> None:
    """B84: no name that could be taken for a file's, and no order of its own."""
    for text, spelled in (
        ("Greeter [B, a] >=1.0 , <2", "greeter[a,b]<2,>=1.0"),
        ("local.whl", "local-whl"),
        ("pkg.tar.gz==1", "pkg-tar-gz==1"),
        ("typing_extensions ~= 4.0", "typing-extensions~=4.0"),
    ):
        assert spelled == plain_requirement(text)


def test_a_tools_words_lose_addresses_and_paths() -> None:
    said = "Failed to fetch: https://user:secret@index.example/simple/x\nat /srv/data/wheels/x.whl"
    told = without_addresses(said)
    assert "secret" not in told
    assert "/srv" not in told
    assert told.startswith("Failed to fetch")


def test_only_equal_needs_share_an_interpreter() -> None:
    tenant, version = uuid.uuid4(), uuid.uuid4()
    key = WarmKey(tenant, version, "e", Limits())
    assert key == WarmKey(tenant, version, "e", Limits())
    assert hash(key) == hash(WarmKey(tenant, version, "e", Limits()))
    others = {
        WarmKey(uuid.uuid4(), version, "e", Limits()),
        WarmKey(tenant, uuid.uuid4(), "e", Limits()),
        WarmKey(tenant, version, "f", Limits()),
        WarmKey(tenant, version, "e", Limits(memory_bytes=1)),
        WarmKey(tenant, version, "e", Limits(), Reuse.CONTAINER),
    }
    assert key not in others
    assert 5 == len(others)


def test_a_short_call_waits_for_a_busy_interpreter_and_a_long_one_does_not() -> None:
    short = Load(busy=2, waiting=10, hold_s=0.001)
    assert not worth_starting(short)
    assert worth_starting(Load(busy=2, waiting=10, hold_s=1.0))
    assert worth_starting(Load())


def test_starts_double_and_never_come_as_a_storm() -> None:
    assert may_start(Load(starting=1))
    assert not may_start(Load(starting=2))
    assert may_start(Load(starting=2, busy=4))
    assert not worth_starting(Load(starting=2))


def test_a_call_that_waited_gets_a_sandbox_only_where_nobody_was_served_meanwhile() -> None:
    load = Load(busy=1, waiting=30, hold_s=0.0001, served=7)
    assert stuck(load, served=7)
    assert not stuck(load, served=6)
    load.hold_s = 1.0
    assert stuck(load, served=6)
    load.starting = 2
    assert not stuck(load, served=6)


def test_the_first_measured_call_counts_at_once() -> None:
    load = Load()
    load.note(0.001)
    assert 0.001 == load.hold_s


def test_short_calls_are_granted_ahead_and_one_long_one_ends_it() -> None:
    pace = Pace()
    for _ in range(200):
        pace.note(10)
    assert 32 == pace.ahead
    assert pace.note(1_000_000)
    assert 1 == pace.ahead


def test_what_is_granted_ahead_is_a_few_milliseconds_of_work_for_each_slot() -> None:
    pace = Pace()
    for user_us, ahead in ((1_800, 8), (100, 32), (900, 32), (1_900, 8), (5_000, 2), (9_000, 1)):
        for _ in range(200):
            pace.note(user_us)
        assert ahead == pace.ahead, user_us


def test_interpreters_wear_out() -> None:
    assert not worn_out(uses=1, age_s=1.0)
    assert worn_out(uses=1_000_000, age_s=1.0)
    assert worn_out(uses=1, age_s=1e6)
    assert not worn_out(uses=1, age_s=1.0, memory_used=0.85)
    assert worn_out(uses=1, age_s=1.0, memory_used=0.95)


def test_code_of_another_author_is_forked_at_least() -> None:
    assert list(Reuse) == [reuse_of(each, own_code=True) for each in Reuse]
    others = [reuse_of(each, own_code=False) for each in Reuse]
    assert [Reuse.FORK, Reuse.FORK, Reuse.FRESH, Reuse.CONTAINER] == others
    assert [False, True, True, False] == [each.apart for each in Reuse]


def test_a_tier_meets_those_below_it() -> None:
    assert meets(Tier.T2, Tier.T1)
    assert not meets(Tier.T1, Tier.T2)
