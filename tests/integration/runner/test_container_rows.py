"""What the row of a sandbox says."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

from services.kit.ids import uuid7
from services.kit.pg import open_pool, transaction
from services.runner.storage import containers
from services.runner.storage.containers import ContainerChange
from tests import factories
from tests.support.database import Database


async def test_a_sandbox_that_runs_has_not_stopped(database: Database) -> None:
    with database.connect() as sql:
        owner = factories.user(sql)
    change = ContainerChange(
        id=uuid7(),
        tenant_id=owner.id,
        node_version_id=None,
        python_version="3.11",
        container_id=f"proc:{uuid4()}",
        status="running",
        created_at=datetime.now(UTC),
        started_at=datetime.now(UTC),
        resource_limits={"isolation": "T2"},
    )
    pool = await open_pool(database.url("qflow_runner_engine"), application_name="test")
    try:
        async with transaction(pool) as db:
            await containers.save(db, uuid7(), [change])
    finally:
        await pool.close()
    with database.connect() as sql:
        row = sql.execute("SELECT started_at IS NULL, stopped_at FROM containers").fetchone()
    assert row == (False, None)
