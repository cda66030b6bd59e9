"""Where the settings say that the root keys of a purpose are.

Apart from what reads and uses them, which is slow to import and not needed where nothing is sealed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from services.kit import env as read

SECRETS: Final = "QFLOW_SECRETS"
DATA: Final = "QFLOW_DATA"


class Told(NamedTuple):
    """A file of root keys, or the keys themselves; both empty where nothing is said of them."""

    path: str
    text: str


def told_of(env: Mapping[str, str], purpose: str) -> Told:
    """Read the settings of a purpose; else what a provision laid into QFLOW_SECRETS_FOLDER."""
    told = Told(env.get(f"{purpose}_KEY_FILE", ""), env.get(f"{purpose}_KEYS", ""))
    return told if any(told) else Told(read.laid_out(env, file_of(purpose)), "")


def file_of(purpose: str) -> str:
    """Name the file of a purpose's keys, at home and among what a service may know."""
    return f"{purpose.removeprefix('QFLOW_').lower()}.key"
