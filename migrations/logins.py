"""Passwords of the service logins, kept in one file that only its owner may read."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from migrations.roles import BACKUP, LOGINS, ensure_backup, ensure_roles, set_password
from migrations.urls import driver_url, with_login

_PASSWORD_BYTES = 32


def ensure_logins(url: str, home: Path) -> dict[str, str]:
    """Give every login a password that stays the same for this home; return login -> address."""
    with _locked(home), psycopg.connect(driver_url(url), application_name="qflow_logins") as owner:
        ensure_roles(owner)
        logins = [*LOGINS, *([BACKUP] if ensure_backup(owner) else [])]
        passwords = _read(home)
        missing = {name: secrets.token_hex(_PASSWORD_BYTES) for name in logins}
        passwords = {**missing, **passwords}
        # Kept before they are set: a password nobody wrote down would lock the services out.
        _write(home, passwords)
        for login in logins:
            set_password(owner, login=login, password=passwords[login])
            owner.commit()
    return _addresses(url, passwords)


def login_urls(url: str, home: Path) -> dict[str, str]:
    """Read login -> address from the home, without asking the server."""
    return _addresses(url, _read(home))


def _addresses(url: str, passwords: dict[str, str]) -> dict[str, str]:
    return {
        login: with_login(url, login=login, password=passwords[login])
        for login in [*LOGINS, BACKUP]
        if login in passwords
    }


def _path(home: Path) -> Path:
    return home / "secrets" / "logins.json"


def _read(home: Path) -> dict[str, str]:
    try:
        text = _path(home).read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    passwords: dict[str, str] = json.loads(text)
    return passwords


def _write(home: Path, passwords: dict[str, str]) -> None:
    """Replace the file whole, readable by its owner alone from its first byte."""
    path = _path(home)
    if passwords == _read(home):
        path.chmod(0o600)
        return
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(passwords, file, indent=2, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Keep a second migrator of the same home from making other passwords."""
    folder = home / "secrets"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    with (folder / ".logins.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
