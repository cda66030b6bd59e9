"""Encryption of data at rest, as configured.

    QFLOW_ENCRYPT_DATA=1               seal inputs and outputs from now on
    QFLOW_DATA_KEY_FILE=…, or …_KEYS   the root keys of data, the current one first

With keys but without the switch, sealed data is read, and nothing new is sealed. With neither, the
code for it is not imported, and no value is examined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, LiteralString

from services.kit import env as read
from services.kit.env import EnvError
from services.kit.key_files import DATA, told_of
from services.kit.pg import Pool, connection

if TYPE_CHECKING:
    from services.kit.data_keys import KeyRing
    from services.kit.root_keys import RootKeys
    from services.kit.run import Loop
    from services.kit.sealed_data import DataKeys

_ANY: Final[LiteralString] = """
    SELECT EXISTS (SELECT 1 FROM data_keys)
"""


@dataclass(slots=True)
class AtRest:
    """How a service seals and opens its data; does nothing without root keys."""

    seals: bool = False
    roots: RootKeys | None = None
    keys: DataKeys | None = None
    makes: bool = False  # whether it creates and rewraps data keys: only the orchestrator does
    _ring: KeyRing | None = field(default=None, init=False)

    @property
    def opened(self) -> Callable[[str], str] | None:
        """The function that opens sealed texts; None without root keys."""
        return None if self.keys is None else self.keys.open

    @property
    def seal(self) -> Callable[[str], str] | None:
        """The function that seals a text; None if texts stay clear."""
        return self.keys.seal if self.keys is not None and self.seals else None

    @property
    def loops(self) -> Sequence[Loop]:
        """Background loops that the service must run."""
        return () if self._ring is None else (self._ring.keep,)

    async def begin(self, pool: Pool) -> None:
        """Load the keys before any data is read; EnvError if sealed data could not be opened."""
        if self.roots is None or self.keys is None:
            async with connection(pool) as db:
                if await db.fetchval(_ANY):
                    raise EnvError(
                        "QFLOW_DATA_KEY_FILE is not set, and data of this deployment is sealed: "
                        "give the file of its root keys"
                    )
            return
        from services.kit.data_keys import KeyRing

        self._ring = KeyRing(
            pool, self.roots, self.keys, makes=self.makes and self.seals, rewraps=self.makes
        )
        await self._ring.begin()


def data_at_rest(env: Mapping[str, str], *, makes: bool = True) -> AtRest:
    """Read the settings of encryption at rest."""
    seals = read.flag(env, "QFLOW_ENCRYPT_DATA")
    if not any(told_of(env, DATA)):
        if seals:
            raise EnvError("QFLOW_ENCRYPT_DATA needs root keys: set QFLOW_DATA_KEY_FILE")
        return AtRest()
    # Imported late: slow, and not needed without encryption.
    from services.kit.root_keys import LocalKeys
    from services.kit.sealed_data import DataKeys

    return AtRest(seals, LocalKeys.from_env(env, DATA), DataKeys(), makes)
