"""What is said of the walls around user code."""

from __future__ import annotations

from services.standalone.isolation import nothing_runs, told_isolation


def test_a_machine_that_holds_user_code_runs_it() -> None:
    assert "" == nothing_runs("T1, 13 of 13 attacks of its own held off", {})
    assert "" == nothing_runs("T2, 13 of 13 attacks of its own held off", {})
    assert "" == nothing_runs("unknown", {})


def test_weaker_walls_are_told_with_their_reason_and_what_would_mend_it() -> None:
    said = told_isolation("T1, 13 of 13 attacks of its own held off")
    assert "WEAKER than the default, T2: without a control group" in said
    assert "systemd-run" in said
    assert "T2, 13 of 13" == told_isolation("T2, 13 of 13")


def test_a_machine_that_does_not_is_told_what_to_do() -> None:
    """E15."""
    assert "QFLOW_UNSAFE_NO_SANDBOX=1" in nothing_runs("T0, the sandbox does not start", {})
    assert "" == nothing_runs("T0, no sandbox", {"QFLOW_UNSAFE_NO_SANDBOX": "1"})


def test_a_minimum_above_what_was_proven_is_named() -> None:
    said = nothing_runs("T1, 13 of 13", {"QFLOW_MINIMUM_TIER": "T2"})
    assert "QFLOW_MINIMUM_TIER asks for T2" in said
    assert "Set QFLOW_MINIMUM_TIER=T1" in said
