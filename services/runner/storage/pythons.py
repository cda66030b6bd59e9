"""The Pythons of the suite's runners."""

from __future__ import annotations

from typing import Final, LiteralString

from services.kit.pg import Db

_COUNT: Final[LiteralString] = """
    SELECT python, count(*) AS runners
      FROM runner_members AS member
     CROSS JOIN LATERAL unnest(member.pythons) AS python
     WHERE member.state = 'idle' OR (member.state = 'live' AND member.expires_at > now())
     GROUP BY python
"""


async def count_by_version(db: Db) -> dict[str, int]:
    """Return the number of runners that currently have each version."""
    return {row["python"]: row["runners"] for row in await db.fetch(_COUNT)}
