"""Up, down and up again; two at once; killed midway; and the logins' passwords."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

import migrations
from migrations.roles import LOGINS, RolesRefused
from services.standalone.postgres import Postgres
from tests.migrations.catalogue import FINGERPRINT, LEFTOVERS
from tests.support.database import Database, Template

_ROOT = Path(__file__).resolve().parents[2]
_HEAD = "0057"


def fingerprint(database: Database) -> list[str]:
    with database.connect() as db:
        return [line for (line,) in db.execute(FINGERPRINT.replace("%%", "%").encode())]


def migrator(database: Database, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "migrations", *arguments],
        cwd=_ROOT,
        env={**os.environ, "QFLOW_DATABASE_URL": database.url(), "QFLOW_HOME": str(database.home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_up_down_and_up_again_give_the_same_schema(migrated: Database, blank: Database) -> None:
    migrations.upgrade(blank.url(), blank.home)
    first = fingerprint(blank)
    assert fingerprint(migrated) == first
    migrations.downgrade(blank.url())
    assert migrations.current(blank.url()) is None
    with blank.connect() as db:
        assert db.execute(LEFTOVERS).fetchall() == []
    migrations.upgrade(blank.url(), blank.home)
    assert fingerprint(blank) == first
    assert migrations.current(blank.url()) == _HEAD


@pytest.mark.slow
@pytest.mark.timeout(300)  # three runs of the migrator for each step
@pytest.mark.parametrize("stand", ["18"], indirect=True)  # all steps at once go on each version
def test_each_step_can_be_taken_back_alone(blank: Database) -> None:
    versions = Path(migrations.__file__).parent / "versions"
    revisions = sorted(path.name[:4] for path in versions.glob("[0-9]*.py"))
    assert revisions[-1] == _HEAD
    for revision in revisions:
        migrations.upgrade(blank.url(), blank.home, revision=revision)
        migrations.downgrade(blank.url(), revision="-1")
        migrations.upgrade(blank.url(), blank.home, revision=revision)
    assert migrations.current(blank.url()) == _HEAD


def test_data_of_a_later_version_are_refused_and_left_as_they_are(migrated: Database) -> None:
    """F37: the version before meets what the next one made."""
    with migrated.connect() as db:
        db.execute("UPDATE alembic_version SET version_num = '9999'")
    before = fingerprint(migrated)
    one = migrator(migrated, "upgrade")
    assert "the data are of a later version of Qflow: their schema is 9999" in one.communicate()[1]
    assert one.returncode == 2
    assert fingerprint(migrated) == before


def test_two_migrators_at_once_make_one_schema(migrated: Database, blank: Database) -> None:
    """F36."""
    both = [migrator(blank, "upgrade") for _ in range(2)]
    assert [(f"{_HEAD}\n", ""), (f"{_HEAD}\n", "")] == [one.communicate() for one in both]
    assert [one.returncode for one in both] == [0, 0]
    assert fingerprint(migrated) == fingerprint(blank)


def test_two_databases_of_one_server_may_be_migrated_at_once(
    server: Postgres, blank: Database
) -> None:
    empty = Template(server=server, name="template1", home=blank.home, login_urls={})
    with empty.clone() as other:
        both = [migrator(database, "upgrade") for database in (blank, other)]
        assert [one.communicate()[1] for one in both] == ["", ""]
        assert [one.returncode for one in both] == [0, 0]


def test_a_migrator_killed_midway_leaves_nothing_that_stops_the_next(
    migrated: Database, blank: Database
) -> None:
    """CP25, F36."""
    migrations.upgrade(blank.url(), blank.home, revision="0004")
    with blank.connect() as db, db.transaction():
        # The fifth migration refers to this table: it waits inside its transaction.
        db.execute("LOCK TABLE files IN ACCESS EXCLUSIVE MODE")
        killed = migrator(blank, "upgrade")
        _until_waiting(blank, killed)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    assert migrations.current(blank.url()) == "0004"
    migrations.upgrade(blank.url(), blank.home)
    assert fingerprint(migrated) == fingerprint(blank)


def test_a_held_lock_is_waited_for_in_short_turns(blank: Database) -> None:
    """F36: whoever queues behind the migrator waits no longer than one turn."""
    migrations.upgrade(blank.url(), blank.home, revision="0004")
    with blank.connect() as db:
        with db.transaction():
            db.execute("LOCK TABLE files IN ACCESS EXCLUSIVE MODE")
            waiting = migrator(blank, "upgrade")
            _until_waiting(blank, waiting)
            # Its turn ends by itself, although nobody lets go of the lock.
            _until_waiting(blank, waiting, there=False)
        assert waiting.communicate() == (f"{_HEAD}\n", "")


def test_passwords_are_kept_for_their_owner_alone_and_used_again(blank: Database) -> None:
    first = migrations.upgrade(blank.url(), blank.home)
    secrets = blank.home / "secrets"
    kept = secrets / "logins.json"
    assert (secrets.stat().st_mode & 0o777, kept.stat().st_mode & 0o777) == (0o700, 0o600)
    passwords = json.loads(kept.read_text())
    assert set(LOGINS) <= set(passwords)
    assert len(passwords) == len(set(passwords.values()))
    assert first == migrations.upgrade(blank.url(), blank.home)
    assert first == migrations.login_urls(blank.url(), blank.home)
    assert (
        first["qflow_runner"]
        == (migrations.login_environment(blank.url(), blank.home)["QFLOW_RUNNER_DATABASE_URL"])
    )
    for login in LOGINS:
        with psycopg.connect(first[login]) as db:
            assert (login,) == db.execute("SELECT current_user").fetchone()


def test_a_changed_password_is_set_back(migrated: Database) -> None:
    urls = migrations.login_urls(migrated.url(), migrated.home)
    with migrated.connect() as owner:
        owner.execute("ALTER ROLE qflow_runner PASSWORD 'other'")
    migrations.upgrade(migrated.url(), migrated.home)
    psycopg.connect(urls["qflow_runner"]).close()


def test_nothing_secret_is_printed(blank: Database) -> None:
    """I37."""
    run = migrator(blank, "upgrade")
    printed = "".join(run.communicate())
    kept = json.loads((blank.home / "secrets" / "logins.json").read_text())
    assert not [secret for secret in kept.values() if secret in printed]


@pytest.mark.parametrize("url", ["", "mysql://root@localhost/qflow", "qflow"])
def test_a_wrong_address_is_refused_in_words(url: str, tmp_path: Path) -> None:
    """F34."""
    done = subprocess.run(
        [sys.executable, "-m", "migrations", "upgrade"],
        cwd=_ROOT,
        env={**os.environ, "QFLOW_DATABASE_URL": url, "QFLOW_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "QFLOW_DATABASE_URL" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_owner_that_is_no_superuser_migrates_up_and_down(
    plain_owner_url: str, tmp_path: Path
) -> None:
    urls = migrations.upgrade(plain_owner_url, tmp_path)
    assert set(LOGINS) == set(urls)  # a backup login is a superuser's to make
    migrations.downgrade(plain_owner_url)
    assert urls == migrations.upgrade(plain_owner_url, tmp_path)
    with psycopg.connect(plain_owner_url) as owner:
        owner.execute("SELECT 1 FROM users")
        owned = owner.execute(
            "SELECT DISTINCT proowner::regrole::text FROM pg_proc WHERE prosecdef"
            " AND pronamespace = 'public'::regnamespace ORDER BY 1"
        )
        assert [("qflow_auth",), ("qflow_maint",)] == owned.fetchall()
    with psycopg.connect(urls["qflow_registry_auth"]) as auth:
        auth.execute("INSERT INTO users (email) VALUES ('a@example.com')")
        assert (2,) == auth.execute("SELECT count(*) FROM users").fetchone()


def test_an_owner_that_may_not_make_roles_is_told_what_to_run(
    powerless_url: str, tmp_path: Path
) -> None:
    """F34."""
    with pytest.raises(RolesRefused, match=r"CREATE ROLE qflow_api NOLOGIN;.*GRANT qflow_api TO"):
        migrations.upgrade(powerless_url, tmp_path)


def _until_waiting(
    database: Database, migrating: subprocess.Popen[str], *, there: bool = True
) -> None:
    """Until the migrator waits for a lock, or no longer does; however long it takes to begin."""
    with database.connect() as db:
        while True:
            found = db.execute(
                "SELECT 1 FROM pg_stat_activity WHERE application_name = 'qflow_migrate'"
                " AND datname = current_database() AND wait_event_type = 'Lock'"
            ).fetchone()
            if bool(found) == there:
                return
            assert migrating.poll() is None, migrating.communicate()
            time.sleep(0.01)
