"""Messages about the isolation of user code that the runner has proven."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from services.kit import env as read

_WEAKER: Final = (
    ": without a control group or without a user namespace memory and processes are not bounded "
    "firmly (SECURITY.md). Where systemd runs, `systemd-run --user --scope -p Delegate=yes` before "
    "the command gives it a control group"
)


def told_isolation(proven: str) -> str:
    """Describe the tier, with a warning if user code is less isolated than by default."""
    if not proven.startswith(("T0", "T1")):
        return proven
    said = f"{proven}  <- WEAKER than the default, T2"
    return f"{said}{_WEAKER if proven.startswith('T1') else ''}"


def nothing_runs(proven: str, env: Mapping[str, str]) -> str:
    """Return why the runner accepts no nodes and what to do; empty if it accepts them."""
    tier, minimum = proven[:2], env.get("QFLOW_MINIMUM_TIER") or "T1"
    if proven == "unknown" or read.flag(env, "QFLOW_UNSAFE_NO_SANDBOX"):
        return ""
    if tier == "T0":
        return (
            "No node runs here, because nothing would hold its code. Start Qflow where user "
            "namespaces are allowed (in a container: --security-opt seccomp=unconfined, as an "
            "ordinary user) or on a kernel with Landlock (5.13 or later). Only for code that you "
            "trust with all this user may do: QFLOW_UNSAFE_NO_SANDBOX=1"
        )
    if tier < minimum:
        return (
            f"No node runs here: QFLOW_MINIMUM_TIER asks for {minimum}, and this machine gives "
            f"{tier}. Set QFLOW_MINIMUM_TIER={tier} to accept that"
        )
    return ""
