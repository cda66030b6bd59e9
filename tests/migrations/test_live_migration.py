"""A schema that changes under running services: expand, migrate, contract."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from alembic import command
from alembic.config import Config

from migrations.apply import configuration, patiently
from tests.migrations.subject import Subject
from tests.support.database import Database

_STEPS = Path(__file__).with_name("steps")
_AS_CALLER = (
    "SELECT set_config('qflow.user_id', %(user)s, true),"
    " set_config('qflow.tenant_id', %(user)s, true), set_config('qflow.role', 'user', true)"
)
# The statements of a service of the release before, frozen here: they never change with the schema.
_OLD = {
    "qflow_registry": (
        "INSERT INTO python_node_tags (id, name, color) VALUES (%(id)s, %(name)s, '#00ff7f')",
        """
        SELECT id, name, color FROM python_node_tags WHERE tenant_id = %(user)s
         ORDER BY created_at DESC, id DESC LIMIT 50
        """,
        "UPDATE python_node_tags SET color = '#102030' WHERE id = %(id)s",
        "DELETE FROM python_node_tags WHERE id = %(id)s",
    ),
    "qflow_orchestrator": (
        """
        SELECT id, status, created_at FROM workflow_executions WHERE tenant_id = %(user)s
         ORDER BY created_at DESC, id DESC LIMIT 50
        """,
        "SELECT id, name, nodes, connections, version FROM workflows WHERE tenant_id = %(user)s",
    ),
}
# And of the release that knows the new column.
_NEW = (
    "INSERT INTO python_node_tags (id, name, color_rgb) VALUES (%(id)s, %(name)s, 255)",
    "SELECT id, name, color_rgb FROM python_node_tags WHERE tenant_id = %(user)s",
    "DELETE FROM python_node_tags WHERE id = %(id)s",
)
_TAGS = 250  # more than two batches


class Service:
    """A service of one release: repeats its statements until told to stop, and keeps count."""

    def __init__(self, url: str, statements: tuple[str, ...], user: str) -> None:
        self.rounds = 0
        self.slowest_s = 0.0
        self.failure: psycopg.Error | None = None
        self._work = (url, statements, user)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        url, statements, user = self._work
        try:
            with psycopg.connect(url) as db:
                while not self._stop.is_set():
                    parameters = {"user": user, "id": str(uuid4()), "name": str(uuid4())}
                    for statement in (_AS_CALLER, *statements):
                        began = time.monotonic()
                        db.execute(statement.encode(), parameters)
                        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                    db.commit()
                    self.rounds += 1
        except psycopg.Error as error:
            self.failure = error


def _step(database: Database, revision: str) -> None:
    config: Config = configuration(database.url())
    config.set_main_option("path_separator", "newline")
    folders = [str(Path(str(config.get_main_option("script_location"))) / "versions"), str(_STEPS)]
    config.set_main_option("version_locations", "\n".join(folders))
    patiently(config, lambda ready: command.upgrade(ready, revision))


@contextmanager
def _running(*services: Service) -> Iterator[list[Service]]:
    for service in services:
        service.start()
    try:
        yield list(services)
    finally:
        for service in services:
            service.stop()


def _old_services(database: Database, user: str) -> AbstractContextManager[list[Service]]:
    return _running(*(Service(database.url(login), work, user) for login, work in _OLD.items()))


@pytest.fixture
def user(migrated: Database) -> str:
    with migrated.connect() as db:
        subject = Subject(db, mended=True)
        owner = subject.user()
        subject.workflow(owner)
        for number in range(_TAGS):
            subject.insert("python_node_tags", owner=owner, name=str(number), color="#0000ff")
    return str(owner)


def test_old_services_run_through_expand_and_migrate_and_end_with_contract(
    migrated: Database, user: str
) -> None:
    """F36: the worked example."""
    with _old_services(migrated, user) as old:
        _rounds(old, more=3)
        _step(migrated, "example_1")
        _rounds(old, more=3)
        # From here on both releases run side by side and read what the other writes.
        with _running(Service(migrated.url("qflow_registry"), _NEW, user)) as (new,):
            _step(migrated, "example_2")
            _rounds([*old, new], more=3)
            with migrated.connect() as db:
                assert (_TAGS, _TAGS) == db.execute(
                    "SELECT count(*), count(*) FILTER (WHERE color_rgb = 255)"
                    " FROM python_node_tags WHERE length(name) < 5"
                ).fetchone()
            assert [None] * 3 == [service.failure for service in (*old, new)]
            assert max(service.slowest_s for service in old) < 5
            # The old registry is gone before the contract; else it would now fail:
            _step(migrated, "example_3")
            _until(lambda: old[0].failure is not None)
            _rounds([old[1], new], more=3)
        assert isinstance(old[0].failure, psycopg.errors.UndefinedColumn)
        assert new.failure is None


def test_services_wait_no_longer_than_one_turn_of_a_migrator_that_has_to_wait(
    migrated: Database, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F36: lock at most a second, also behind somebody's long transaction."""
    monkeypatch.setenv("QFLOW_MIGRATE_LOCK_TIMEOUT", "300ms")
    with _old_services(migrated, user) as old, migrated.connect() as reader:
        _rounds(old, more=1)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM python_node_tags")

        def let_go_after_a_turn() -> None:
            with migrated.connect() as watcher:
                _until(lambda: _migrator_waits(watcher))
                _until(lambda: not _migrator_waits(watcher))
            _rounds(old, more=2)
            reader.execute("COMMIT")

        helper = threading.Thread(target=let_go_after_a_turn)
        helper.start()
        _step(migrated, "example_1")
        helper.join()
        _rounds(old, more=2)
    assert [None, None] == [service.failure for service in old]
    assert max(service.slowest_s for service in old) < 5


def _migrator_waits(db: psycopg.Connection) -> bool:
    return bool(
        db.execute(
            "SELECT 1 FROM pg_stat_activity WHERE application_name = 'qflow_migrate'"
            " AND datname = current_database() AND wait_event_type = 'Lock'"
        ).fetchone()
    )


def _rounds(services: list[Service], *, more: int) -> None:
    wanted = [service.rounds + more for service in services]
    _until(
        lambda: all(
            service.rounds >= count or service.failure is not None
            for service, count in zip(services, wanted, strict=True)
        )
    )


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
