"""What sums metrics up is planned for the sizes that tables have by then.

A plan is kept by each connection for as long as nobody analyses the tables. One that was made while
there were few runs walks through all of them for each batch of metrics, however many they become.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0053"
down_revision = "0052"


def upgrade() -> None:
    run(("ALTER FUNCTION roll_up_metrics() SET plan_cache_mode = force_custom_plan",))


def downgrade() -> None:
    run(("ALTER FUNCTION roll_up_metrics() RESET plan_cache_mode",))
