"""What finished work left behind on one machine, counted: zero of each kind, once all is quiet.

The doctor's questions are about the database alone; these hold it against processes and folders.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import psutil
import psycopg

from services.standalone.process import wait_until
from tests.support.invariants import broken
from tests.support.suite import Suite

_QUIET_S: Final = 30.0
# Sandboxes that are ready for whoever comes, and are nobody's yet: one of the last shape stays.
_SPARES: Final = 1
_SPARES_OF_MANY: Final = 3

_SLOTS: Final = """
    SELECT slot.id::text FROM limit_slots slot
      LEFT JOIN workflow_executions run ON run.id = slot.execution_id
     WHERE run.id IS NULL OR run.completed_at IS NOT NULL
"""
_MEMBERS: Final = """
    SELECT id::text FROM engine_members
     WHERE state = 'live' AND expires_at < clock_timestamp() - interval '1 min'
     UNION ALL
    SELECT incarnation::text FROM runner_members
     WHERE state = 'live' AND expires_at < clock_timestamp() - interval '1 min'
"""
_OPEN_CONTAINERS: Final = """
    SELECT count(*) FROM containers WHERE status IN ('creating', 'running')
"""
_LOST_CONTAINERS: Final = """
    SELECT c.id::text FROM containers c
      LEFT JOIN runner_members r ON r.incarnation = c.runner_incarnation
     WHERE c.status IN ('creating', 'running') AND (r.incarnation IS NULL OR r.state = 'gone')
"""
_FILES: Final = "SELECT file_path, file_size_bytes, hash_sha256 FROM files"
_UPLOADS: Final = "SELECT tenant_id || '/' || id FROM file_uploads"
# A deleted file's bytes go with the runner's next look, once a minute: no leak while that is due.
_TO_REMOVE: Final = """
    SELECT tenant_id || '/' || (payload ->> 'file_id') FROM outbox_events
     WHERE kind = 'file_deleted' AND sent_at IS NULL
"""
_READY: Final = "SELECT path FROM environments WHERE state = 'ready'"


def leaks(suite: Suite, *, spares: int = _SPARES) -> dict[str, list[str]]:
    """Give what leaked, by kind; kinds of which nothing did are left out."""
    with suite.sql() as db:
        found = {
            "slots": _keys(db, _SLOTS),
            "members": _keys(db, _MEMBERS),
            "containers": [*_containers(suite, db, spares)],
            "files": [*_files(suite.home.root / "files", db)],
            "environments": [*_environments(suite.home.root / "environments", db)],
        }
    return {kind: keys for kind, keys in found.items() if keys}


def settled(
    suite: Suite, look: Callable[[Suite], dict[str, list[str]]] = leaks
) -> dict[str, list[str]]:
    """Give what is still left when there was time for all that goes by itself."""
    wait_until(lambda: not look(suite), timeout_s=_QUIET_S)
    return look(suite)


def examined(
    suite: Suite, known: Mapping[str, list[Any]], *, planted: frozenset[str] = frozenset()
) -> dict[str, list[Any]]:
    """Give what the doctor finds broken on a suite and what leaked there, once all is quiet.

    What is known already is left out; what was planted stays, and is not waited for.
    """
    deadline = time.monotonic() + _QUIET_S
    while (found := _broken_and_leaked(suite, known)).keys() - planted:
        if time.monotonic() > deadline:
            break
        time.sleep(0.25)  # an examination is no cheap question
    return found


def _broken_and_leaked(suite: Suite, known: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    with suite.sql() as db:
        # Shapes of sandboxes come and go with a module's nodes, and each may have its spare.
        found: dict[str, list[Any]] = {**broken(db), **leaks(suite, spares=_SPARES_OF_MANY)}
    return beyond(known, found)


def beyond(
    known: Mapping[str, Sequence[Any]], found: Mapping[str, Sequence[Any]]
) -> dict[str, list[Any]]:
    """Give what was found and not known before, by kind: a suite is shared by many tests."""
    new = {
        kind: [each for each in rows if each not in known.get(kind, ())]
        for kind, rows in found.items()
    }
    return {kind: rows for kind, rows in new.items() if rows}


def _keys(db: psycopg.Connection, query: str) -> list[str]:
    return [key for (key,) in db.execute(query.encode())]


def _containers(suite: Suite, db: psycopg.Connection, spares: int) -> Iterator[str]:
    """I18, both ways: a row that is open without a sandbox, and a sandbox without an open row."""
    yield from _keys(db, _LOST_CONTAINERS)
    [(rows,)] = db.execute(_OPEN_CONTAINERS.encode()).fetchall()
    there = len(sandboxes(suite))
    if not rows <= there <= rows + spares:
        yield f"{rows} open rows for {there} sandboxes"


def sandboxes(suite: Suite) -> list[psutil.Process]:
    """Find the sandboxes of the runner: its children that run the agent."""
    runner = psutil.Process(suite.marks()["runner"].pid)
    return [each for each in runner.children() if _runs_agent(each)]


def _runs_agent(process: psutil.Process) -> bool:
    try:
        return any("agent" in part for part in process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _files(root: Path, db: psycopg.Connection) -> Iterator[str]:
    """I20: bytes that are not those of their row, and bytes without a row."""
    known = {*_keys(db, _UPLOADS), *_keys(db, _TO_REMOVE)}
    for key, size, digest in db.execute(_FILES.encode()):
        known.add(key)
        path = root / key
        if not path.is_file():
            yield f"{key}: no bytes"
        elif path.stat().st_size != size:
            yield f"{key}: {path.stat().st_size} bytes, not {size}"
        elif digest and hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            yield f"{key}: other bytes"
    for folder in root.iterdir() if root.is_dir() else ():
        for path in folder.iterdir() if _is_uuid(folder.name) else ():
            key = f"{folder.name}/{path.name}"
            if _is_uuid(path.name) and key not in known:
                yield f"{key}: no row"


def _environments(root: Path, db: psycopg.Connection) -> Iterator[str]:
    """One that is said to be ready is there."""
    for path in _keys(db, _READY):
        if path and not (root / path).is_dir():
            yield f"{path}: no folder"


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False
