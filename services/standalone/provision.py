"""Bring a deployment's database to this version and lay out what each of its services may know.

For services that are started one by one: by a container engine, systemd or Kubernetes. What is kept
between two provisions (passwords, the owner's token, the authority's key) stays in QFLOW_HOME; each
service gets a folder of its own with its settings as files, to be read through
QFLOW_SECRETS_FOLDER, and its certificate. A process of its own: what it imports is large.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import psycopg
from sqlalchemy.exc import OperationalError

import migrations
from migrations.roles import RolesRefused
from services.kit import env as read
from services.kit.key_files import DATA, SECRETS, file_of
from services.standalone import certificates, tls_files
from services.standalone.addresses import SERVICES
from services.standalone.home import Home, write_private
from services.standalone.prepare import prepare, variable
from services.standalone.process import StandaloneError

BACKUP_LOGIN: Final = "qflow_backup"
CERTIFICATE: Final = "service.crt"
KEY: Final = "service.key"
WEBHOOK_KEY: Final = "webhook.key"
# How long a start waits for PostgreSQL, which may be starting itself, to take connections.
_CONNECT_S: Final = "10"


def provision(
    home: Home, folder: Path, env: Mapping[str, str], *, hosts: Sequence[str], days: int
) -> str:
    """Do it all, again and again without harm; gives what to say about it."""
    try:
        url = read.required(read.with_secrets(env), "QFLOW_DATABASE_URL")
        home.make()
        os.environ.setdefault("PGCONNECT_TIMEOUT", _CONNECT_S)
        prepared = prepare(database_url=url, home=home.root, create=False)
    except (psycopg.OperationalError, OperationalError, UnicodeError) as error:
        raise StandaloneError(migrations.complaint(error)) from None
    except RolesRefused as error:
        raise StandaloneError(f"QFLOW_DATABASE_URL: {error}") from None
    except ValueError as error:  # it names the setting: EnvError, or an address that is none
        raise StandaloneError(str(error)) from None
    # Not by this machine's own name, which in a container is another each time.
    renewed = certificates.ensure(home.tls, [*certificates.listed(env), *hosts], days=days)
    for service in SERVICES:
        _lay_out(
            home, folder / service, service, env, prepared["urls"], prepared["tokens"][service]
        )
    told = f"new certificates for {', '.join(renewed)}" if renewed else "the certificates hold"
    return f"the database is of this version; {told}; secrets of each service lie under {folder}"


def settings_of(service: str, urls: Mapping[str, str], token: str) -> dict[str, str]:
    """Give the secret settings of one service: nobody gets another's logins."""
    own = {
        variable(login): url
        for login, url in urls.items()
        if f"{login}_".startswith(f"qflow_{service}_")
        or (login == BACKUP_LOGIN and service == "telemetry")
    }
    return {**own, "QFLOW_SERVICE_TOKEN": token}


def root_keys_of(home: Home, service: str, env: Mapping[str, str]) -> dict[str, Path]:
    """Give what opens secrets, to runners alone, and data at rest, to those who seal it."""
    keys = {SECRETS: home.secrets_key()} if service == "runner" else {}
    if service in {"runner", "orchestrator"}:
        data = home.data_key(make=read.flag(env, "QFLOW_ENCRYPT_DATA"))
        keys |= {} if data is None else {DATA: data}
    return keys


def _lay_out(
    home: Home,
    folder: Path,
    service: str,
    env: Mapping[str, str],
    urls: Mapping[str, str],
    token: str,
) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, value in settings_of(service, urls, token).items():
            write_private(folder / name, f"{value}\n")
        copied = {
            tls_files.AUTHORITY: home.tls / tls_files.AUTHORITY,
            # The key first: until the certificate follows, whoever looks sees that they do not fit.
            KEY: tls_files.key_of(home.tls, service),
            CERTIFICATE: tls_files.certificate_of(home.tls, service),
        }
        for name, source in copied.items():
            write_private(folder / name, source.read_text("ascii"))
        if service == "orchestrator":
            write_private(folder / WEBHOOK_KEY, home.secret(WEBHOOK_KEY) + "\n")
        for purpose, key in root_keys_of(home, service, env).items():
            write_private(folder / file_of(purpose), key.read_text("ascii"))
    except OSError as error:
        raise StandaloneError(f"{folder}: cannot be written ({error.strerror})") from None
