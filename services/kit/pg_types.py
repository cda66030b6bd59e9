"""Connections that know the arrays of PostgreSQL's own types, for which the driver asks anew."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, cast

import asyncpg

# Below it numbers are given by hand, and mean the same in every PostgreSQL.
_NUMBERS_GIVEN_LATER: Final = 10_000
_KNOWN: Final[dict[int, asyncpg.Record]] = {}
_NO_STATEMENT: Final = SimpleNamespace(name="none was needed")

if TYPE_CHECKING:
    _Connection = asyncpg.Connection[asyncpg.Record]
else:
    _Connection = asyncpg.Connection


class KnowingConnection(_Connection):
    """Asks what `uuid[]` and its like are once in a process.

    The question is a recursive one over the whole catalogue, and costs the server more than nearly
    all that a service asks afterwards.
    """

    async def _introspect_types(self, typeoids: Iterable[int], *given: Any) -> Any:
        asked = set(typeoids)
        if asked <= _KNOWN.keys():
            return [_KNOWN[each] for each in asked], _NO_STATEMENT
        found, statement = await cast("Any", super())._introspect_types(typeoids, *given)  # noqa: SLF001  # its own
        _KNOWN.update(
            (each["oid"], each)
            for each in found
            if each["elemtype"] and each["oid"] < _NUMBERS_GIVEN_LATER
        )
        return found, statement
