"""The journal's connection to PostgreSQL, which also receives notifications of other members."""

from __future__ import annotations

import asyncpg

from services.kit.pg import prepare_connection
from services.kit.pg_types import KnowingConnection
from services.orchestrator.engine.engine import Engine
from services.orchestrator.engine.journal import FLUSH_MAX_S
from services.orchestrator.storage.limit_slots import CHANNEL as LIMITS_CHANNEL
from services.orchestrator.storage.limit_slots import freed_by
from services.orchestrator.storage.shards import CHANNEL as MEMBERS_CHANNEL


async def connect_journal(url: str, engine: Engine) -> asyncpg.Connection[asyncpg.Record]:
    """Open the journal's connection, and listen for notifications of other members.

    Its statements find rows by key. A plan made while the tables are small could choose a
    sequential scan and would be kept when they have grown, so such plans are disabled; and because
    an index may be scanned whole as well, the journal has its statements replanned
    (`Journal._plan_anew`).
    """
    db = await asyncpg.connect(
        url,
        connection_class=KnowingConnection,
        timeout=5,
        command_timeout=FLUSH_MAX_S * 2,
        server_settings={
            "application_name": "qflow-journal",
            "statement_timeout": "60000",
            "lock_timeout": "2000",  # a locked row must not hold up the flushes of all runs
            "enable_seqscan": "off",
            "enable_hashjoin": "off",
            "enable_mergejoin": "off",
            "plan_cache_mode": "force_generic_plan",
            "jit": "off",
        },
    )
    await prepare_connection(db)
    await db.add_listener(
        MEMBERS_CHANNEL,
        lambda _db, _pid, _channel, member_id: hear_of_members(engine, str(member_id)),
    )
    await db.add_listener(
        LIMITS_CHANNEL, lambda _db, _pid, _channel, told: hear_of_limits(engine, str(told))
    )
    engine.hear_of_limits()  # notifications sent before `LISTEN` were missed
    return db


def hear_of_members(engine: Engine, told_by: str) -> None:
    """Have the members surveyed when another member reports a change."""
    if told_by != str(engine.member.id):
        engine.shards.look.set()


def hear_of_limits(engine: Engine, told: str) -> None:
    """Recheck waiting nodes when another member released slots, or reread all limits."""
    member_id, limit_ids = freed_by(told)
    if member_id is None:
        engine.hear_of_limits()
    elif member_id != engine.member.id:
        for each in limit_ids:
            engine.hear_of_limits(freed=each)
