"""What is kept is bounded by its weight, not by its number."""

from __future__ import annotations

from services.orchestrator.usecases.recent import Recent


def test_what_was_not_used_for_longest_makes_room() -> None:
    kept: Recent[str, int] = Recent(10)
    kept.keep("a", 1, weight=4)
    kept.keep("b", 2, weight=4)
    assert 1 == kept.get("a")
    kept.keep("c", 3, weight=4)
    assert [1, None, 3] == [kept.get(key) for key in "abc"]


def test_the_last_one_stays_whatever_it_weighs() -> None:
    kept: Recent[str, int] = Recent(10)
    kept.keep("a", 1, weight=4)
    kept.keep("b", 2, weight=1000)
    assert [None, 2] == [kept.get(key) for key in "ab"]
    kept.keep("a", 1, weight=4)
    assert [1, None] == [kept.get(key) for key in "ab"]


def test_keeping_again_and_dropping_give_the_weight_back() -> None:
    kept: Recent[str, int] = Recent(10)
    for value in range(5):
        kept.keep("a", value, weight=8)
    kept.drop("a")
    kept.drop("a")
    kept.keep("b", 1, weight=5)
    kept.keep("c", 2, weight=5)
    assert [None, 1, 2] == [kept.get(key) for key in "abc"]
