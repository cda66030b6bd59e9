"""Whether any schedule or event is due, for members that check only now and then."""

from __future__ import annotations

from typing import Final, LiteralString

from services.kit.pg import Db

# Each part reads one index entry. A claimed row is not due until its claim expires.
_DUE: Final[LiteralString] = """
    SELECT EXISTS (SELECT FROM schedules WHERE fire_at <= clock_timestamp())
        OR EXISTS (SELECT FROM schedule_ticks AS tick
                     JOIN schedules AS schedule ON schedule.id = tick.schedule_id
                    WHERE tick.state = 'pending' AND tick.try_at <= clock_timestamp()
                      AND (schedule.claimed_until IS NULL
                           OR schedule.claimed_until <= clock_timestamp()))
        OR EXISTS (SELECT FROM schedule_backfills WHERE step_at <= clock_timestamp()) AS schedules,
           EXISTS (SELECT FROM outbox_events WHERE kind = 'execution_event' AND sent_at IS NULL)
        OR EXISTS (SELECT FROM event_subscriptions AS subscription
                     JOIN event_deliveries AS delivery ON delivery.subscription_id = subscription.id
                    WHERE subscription.paused_at IS NULL AND delivery.state = 'pending'
                      AND delivery.due_at <= clock_timestamp()) AS events
"""


async def due(db: Db) -> tuple[bool, bool]:
    """Return whether schedules have work now, and whether events have."""
    row = await db.fetchrow(_DUE)
    assert row is not None
    return row["schedules"], row["events"]
