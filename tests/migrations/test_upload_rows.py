"""Uploads and quotas: whose rows they are, and what is counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.migrations.subject import Subject

_UPLOAD = (
    "INSERT INTO file_uploads (id, filename, mime_type, file_size_bytes, tenant_id, created_by,"
    " expires_at) VALUES (%s, 'a', 'a/b', %s, %s, %s, %s)"
)
_FINISH = """
    WITH whole AS (DELETE FROM file_uploads WHERE id = %s RETURNING *)
    INSERT INTO files (id, filename, original_filename, file_path, file_size_bytes, tenant_id,
           created_by)
    SELECT id, filename, filename, tenant_id || '/' || id, file_size_bytes, tenant_id, created_by
      FROM whole
"""


def _upload(s: Subject, owner: UUID, size: int = 1, *, expires: str = "tomorrow") -> UUID:
    upload = uuid4()
    s.db.execute(_UPLOAD, (upload, size, owner, owner, expires))
    return upload


def _usage(s: Subject, owner: UUID) -> tuple[Any, ...] | None:
    return s.db.execute(
        "SELECT bytes, files FROM file_usage WHERE tenant_id = %s", (owner,)
    ).fetchone()


def test_uploads_and_callers_files_are_their_tenants_alone(mended: Subject) -> None:
    """S8, X14, X17, B66: also against a statement of one's own."""
    owner, other = mended.user(), mended.user()
    run = mended.execution(owner)
    of_run = mended.file(owner, workflow_execution_id=run)
    with mended.acting(owner, "qflow_runner"):
        _upload(mended, owner)
        assert mended.takes("files", owner=owner)
        assert not mended.takes("files", owner=owner, workflow_execution_id=run)
        assert not mended.takes("files", owner=other)
        assert not mended.does(lambda: _upload(mended, other))
        assert not mended.does(lambda: mended.count("UPDATE file_usage SET bytes_max = 1"))
        assert not mended.does(lambda: mended.count("UPDATE files SET filename = 'b'"))
    with mended.acting(owner, "qflow_runner", role="viewer"):
        assert not mended.does(lambda: _upload(mended, owner))
        assert 0 == mended.count("DELETE FROM files")
        assert 0 == mended.count("DELETE FROM file_uploads")
    with mended.acting(other, "qflow_runner"):
        for table in ("file_uploads", "file_usage"):
            assert 0 == mended.count(f"SELECT 1 FROM {table}")
        assert 0 == mended.count("DELETE FROM file_uploads")
        assert 0 == mended.count("DELETE FROM files")
    with mended.acting(owner, "qflow_runner"):
        mended.count("DELETE FROM files")
    assert [(of_run,)] == mended.db.execute(
        "SELECT id FROM files WHERE workflow_execution_id IS NOT NULL"
    ).fetchall()


def test_the_engine_gives_up_only_uploads_that_are_over(mended: Subject) -> None:
    owner = mended.user()
    kept, over = _upload(mended, owner), _upload(mended, owner, expires="yesterday")
    with mended.acting(None, "qflow_runner_engine"):
        assert 1 == mended.count("DELETE FROM file_uploads")
    assert [(kept,)] == mended.db.execute("SELECT id FROM file_uploads").fetchall()
    assert [(str(over), owner)] == mended.db.execute(
        "SELECT payload ->> 'file_id', tenant_id FROM outbox_events"
    ).fetchall()


def test_what_a_tenant_has_is_counted_as_it_changes(mended: Subject) -> None:
    """S20, B71: whoever writes it, and whatever takes it away."""
    owner = mended.user()
    run = mended.execution(owner)
    mended.file(owner, workflow_execution_id=run, file_size_bytes=5)
    upload = _upload(mended, owner, 7)
    _upload(mended, owner, 3)
    assert (15, 3) == _usage(mended, owner)
    mended.db.execute("UPDATE file_usage SET bytes_max = 15, files_max = 3")
    mended.db.execute(_FINISH, (upload,))  # the same bytes: it fits
    assert (15, 3) == _usage(mended, owner)
    assert 0 == mended.count("SELECT 1 FROM outbox_events WHERE kind = 'file_deleted'")
    mended.db.execute("DELETE FROM workflow_executions")
    mended.db.execute("DELETE FROM file_uploads")
    assert (7, 1) == _usage(mended, owner)
    mended.db.execute("DELETE FROM files")
    assert (0, 0) == _usage(mended, owner)
    assert 3 == mended.count("SELECT 1 FROM outbox_events WHERE kind = 'file_deleted'")


@pytest.mark.parametrize(("bytes_max", "files_max"), [(4, 10), (10, 1)])
def test_what_is_over_a_quota_does_not_get_in(
    bytes_max: int, files_max: int, mended: Subject
) -> None:
    """B71."""
    owner = mended.user()
    mended.file(owner, file_size_bytes=2)
    mended.db.execute(
        "UPDATE file_usage SET bytes_max = %s, files_max = %s", (bytes_max, files_max)
    )
    writes: list[Callable[[], UUID]] = [
        lambda: _upload(mended, owner, 3),
        lambda: mended.file(owner, file_size_bytes=3),
    ]
    for write in writes:
        with pytest.raises(psycopg.Error) as refused, mended.db.transaction():
            write()
        assert "QF003" == refused.value.sqlstate
    assert (2, 1) == _usage(mended, owner)


def test_a_tenants_own_quota_of_files_stands_above_that_of_the_deployment(mended: Subject) -> None:
    """B71: more or less of it, and what refused says so in numbers."""
    owner, other = mended.user(), mended.user()
    for tenant in (owner, other):
        mended.file(tenant, file_size_bytes=2)
    mended.db.execute("UPDATE file_usage SET bytes_max = 4, files_max = 1")
    mended.db.execute(
        "INSERT INTO tenant_quotas (tenant_id, stored_bytes, stored_files, updated_by)"
        " VALUES (%s, 6, 2, %s)",
        (owner, owner),
    )
    with mended.acting(owner, "qflow_runner"):
        upload = _upload(mended, owner, 3)
    assert (5, 2) == _usage(mended, owner)
    for size, told in ((2, ("stored_bytes", 6, 5)), (1, ("stored_files", 2, 2))):
        with pytest.raises(psycopg.Error) as refused, mended.db.transaction():
            _upload(mended, owner, size)
        detail = json.loads(refused.value.diag.message_detail or "")
        assert told == (detail["quota"], detail["limit"], detail["used"])
        assert f"tenant/{owner}" == detail["subject"]
    with pytest.raises(psycopg.Error), mended.db.transaction():
        _upload(mended, other, 1)
    mended.db.execute("DELETE FROM file_uploads WHERE id = %s", (upload,))
    assert (2, 1) == _usage(mended, owner)
