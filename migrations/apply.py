"""Bring a database to a revision, in this process; safe to repeat and to run twice at once."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from migrations import logins
from migrations.urls import driver_url

HEAD = "head"
_FOLDER = Path(__file__).resolve().parent
_ATTEMPTS = 30
_PAUSE_MAX_S = 2.0


def upgrade(database_url: str, home: Path | str, *, revision: str = HEAD) -> dict[str, str]:
    """Migrate up and give every service login its password; return login -> address.

    The passwords are kept in `home`/secrets/logins.json and used again: one home, one set of
    passwords. Roles are the server's, so two homes over one server would take turns.
    """
    upgrade_schema(database_url, revision=revision)
    return logins.ensure_logins(database_url, Path(home))


def upgrade_schema(database_url: str, *, revision: str = HEAD) -> None:
    """Migrate up and leave the logins' passwords to whoever keeps them."""
    _refuse_later(database_url)
    patiently(configuration(database_url), lambda config: command.upgrade(config, revision))


class LaterVersion(ValueError):  # noqa: N818 - says what the data are
    """The data were brought to a schema that this version of Qflow does not know."""


def _refuse_later(database_url: str) -> None:
    found = current(database_url)
    known = ScriptDirectory.from_config(configuration(database_url))
    if found is not None and all(found != each.revision for each in known.walk_revisions()):
        raise LaterVersion(
            f"the data are of a later version of Qflow: their schema is {found}, this version knows "
            f"those up to {known.get_current_head()}. Nothing was changed; start the later version, "
            "or restore a backup of this one"
        )


def downgrade(database_url: str, *, revision: str = "base") -> None:
    """Migrate down; roles and passwords stay."""
    patiently(configuration(database_url), lambda config: command.downgrade(config, revision))


def current(database_url: str) -> str | None:
    """Name the revision the database is at, None for an empty one."""
    url = driver_url(database_url)
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(url), poolclass=NullPool
    )
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def complaint(error: Exception) -> str:
    """Say a fault of the database in one line; names the setting where nobody could enter."""
    cause = error.orig if isinstance(error, OperationalError) else error
    text = " ".join(str(cause).split())
    # The server gives its own faults a state; without one there was no connection.
    return text if getattr(cause, "sqlstate", None) else f"QFLOW_DATABASE_URL: {text}"


def login_urls(database_url: str, home: Path | str) -> dict[str, str]:
    """Read login -> address from the home; empty before the first upgrade."""
    return logins.login_urls(database_url, Path(home))


def login_environment(database_url: str, home: Path | str) -> dict[str, str]:
    """Give the same as the variables that the services read (QFLOW_REGISTRY_DATABASE_URL, ...)."""
    urls = login_urls(database_url, home)
    return {f"{login.upper()}_DATABASE_URL": url for login, url in urls.items()}


def configuration(database_url: str) -> Config:
    """Tell alembic where the migrations lie and which database to ask."""
    config = Config()
    # A per cent sign would be read as the start of a variable.
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.attributes["url"] = database_url
    return config


def patiently(config: Config, step: Callable[[Config], None]) -> None:
    """Run a step again while somebody else holds the locks it needs.

    Every migration commits by itself, so a repeat goes on where the last one stopped.
    """
    for attempt in range(_ATTEMPTS):
        try:
            step(config)
        except (OperationalError, psycopg.errors.LockNotAvailable) as error:
            cause = error.orig if isinstance(error, OperationalError) else error
            last = attempt == _ATTEMPTS - 1
            if last or not isinstance(
                cause, (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)
            ):
                raise
            time.sleep(random.uniform(0.1, _PAUSE_MAX_S))  # noqa: S311 - jitter, not a secret
        else:
            return
