"""Whether and how a service seals data at rest, as its settings say.

    QFLOW_ENCRYPT_DATA=1               seal inputs and outputs from now on
    QFLOW_DATA_KEY_FILE=…, or …_KEYS   the root keys of data, the current one first

With keys and without the switch what was sealed is read, and nothing more is sealed. Without both
nothing of this is imported, and no value is looked at.
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
    """What a service does about its data: nothing, unless it has root keys."""

    seals: bool = False
    roots: RootKeys | None = None
    keys: DataKeys | None = None
    makes: bool = False  # data keys, and wraps them anew: the orchestrator's task
    _ring: KeyRing | None = field(default=None, init=False)

    @property
    def opened(self) -> Callable[[str], str] | None:
        """What gives clear texts again; None where nothing was ever sealed."""
        return None if self.keys is None else self.keys.open

    @property
    def seal(self) -> Callable[[str], str] | None:
        """What seals a text; None where texts stay clear."""
        return self.keys.seal if self.keys is not None and self.seals else None

    @property
    def loops(self) -> Sequence[Loop]:
        """What has to go on beside the service."""
        return () if self._ring is None else (self._ring.keep,)

    async def begin(self, pool: Pool) -> None:
        """Learn the keys before anything is read; EnvError where what is sealed cannot be."""
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
    """Read what a deployment says."""
    seals = read.flag(env, "QFLOW_ENCRYPT_DATA")
    if not any(told_of(env, DATA)):
        if seals:
            raise EnvError("QFLOW_ENCRYPT_DATA needs root keys: set QFLOW_DATA_KEY_FILE")
        return AtRest()
    # Where nothing is sealed, nobody waits for it to be imported.
    from services.kit.root_keys import LocalKeys
    from services.kit.sealed_data import DataKeys

    return AtRest(seals, LocalKeys.from_env(env, DATA), DataKeys(), makes)
