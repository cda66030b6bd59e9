"""Migrate a deployment's database and write each service's secrets into its own folder.

For services that are started one by one: by a container engine, systemd or Kubernetes. What
persists between two runs (passwords, the owner's token, the authority's key) stays in QFLOW_HOME.
Each service gets a folder with its settings as files, to be read through QFLOW_SECRETS_FOLDER, and
its certificate. A separate process, since its imports are large.
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
# How long to wait for PostgreSQL to accept connections, in seconds; it may be starting.
_CONNECT_S: Final = "10"


def provision(
    home: Home, folder: Path, env: Mapping[str, str], *, hosts: Sequence[str], days: int
) -> str:
    """Provision a deployment; idempotent. Returns a message about the result."""
    try:
        url = read.required(read.with_secrets(env), "QFLOW_DATABASE_URL")
        home.make()
        os.environ.setdefault("PGCONNECT_TIMEOUT", _CONNECT_S)
        prepared = prepare(database_url=url, home=home.root, create=False)
    except (psycopg.OperationalError, OperationalError, UnicodeError) as error:
        raise StandaloneError(migrations.complaint(error)) from None
    except RolesRefused as error:
        raise StandaloneError(f"QFLOW_DATABASE_URL: {error}") from None
    except ValueError as error:  # names the setting: EnvError, or an invalid address
        raise StandaloneError(str(error)) from None
    # Not for this machine's own name, which in a container is different each time.
    renewed = certificates.ensure(home.tls, [*certificates.listed(env), *hosts], days=days)
    for service in SERVICES:
        _lay_out(
            home, folder / service, service, env, prepared["urls"], prepared["tokens"][service]
        )
    told = f"new certificates for {', '.join(renewed)}" if renewed else "the certificates hold"
    return f"the database is of this version; {told}; secrets of each service lie under {folder}"


def settings_of(service: str, urls: Mapping[str, str], token: str) -> dict[str, str]:
    """Return the secret settings of one service, with its own logins only."""
    own = {
        variable(login): url
        for login, url in urls.items()
        if f"{login}_".startswith(f"qflow_{service}_")
        or (login == BACKUP_LOGIN and service == "telemetry")
    }
    return {**own, "QFLOW_SERVICE_TOKEN": token}


def root_keys_of(home: Home, service: str, env: Mapping[str, str]) -> dict[str, Path]:
    """Return a service's root keys: of secrets for the runner, of data for those who seal it."""
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
            # The key first: until the certificate follows, readers see that the two do not match.
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
