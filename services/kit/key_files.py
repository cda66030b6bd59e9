"""Settings of where the root keys of a purpose are.

Separate from the code that loads and uses keys, which is slow to import.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from services.kit import env as read

SECRETS: Final = "QFLOW_SECRETS"
DATA: Final = "QFLOW_DATA"


class Told(NamedTuple):
    """A file of root keys, or the keys themselves; both empty if neither is set."""

    path: str
    text: str


def told_of(env: Mapping[str, str], purpose: str) -> Told:
    """Read the settings of a purpose; by default its file in QFLOW_SECRETS_FOLDER, if any."""
    told = Told(env.get(f"{purpose}_KEY_FILE", ""), env.get(f"{purpose}_KEYS", ""))
    return told if any(told) else Told(read.laid_out(env, file_of(purpose)), "")


def file_of(purpose: str) -> str:
    """Return the name of a purpose's key file, in the home folder and in QFLOW_SECRETS_FOLDER."""
    return f"{purpose.removeprefix('QFLOW_').lower()}.key"
