"""Commands that need only the database, whether or not the suite runs."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import structlog

import migrations
from services.kit.env import EnvError
from services.registry.__main__ import main as registry
from services.standalone import addresses, bootstrap, hints
from services.standalone.home import Home
from services.standalone.postgres import Binaries, Postgres
from services.standalone.process import StandaloneError
from services.telemetry.__main__ import main as telemetry


def renew_owner_token(home: Home) -> str:
    """Create a new token for the owner and end the previous one; returns the path of its file."""
    # The command reports the result itself.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with logins(home) as urls:
        try:
            return str(bootstrap.renew_owner_token(urls, home.root))
        except EnvError as error:
            raise StandaloneError(str(error)) from error


def create_user(home: Home, *, email: str, role: str) -> int:
    """Create a user by the registry's own command, which asks for the password.

    Returns its code.
    """
    with logins(home) as urls:
        env = {"QFLOW_REGISTRY_AUTH_DATABASE_URL": urls["qflow_registry_auth"]}
        return registry(["create-user", f"--role={role}", "--", email], env)


def examine(home: Home, arguments: list[str]) -> int:
    """Check the invariants by telemetry's own command; returns its exit code."""
    with logins(home) as urls:
        url = urls.get("qflow_telemetry_doctor")
        if url is None:
            run = hints.make("run", home=home.root, env=os.environ)
            raise StandaloneError(
                f"no suite of this version was started on {home.root} yet: run `{run}` once"
            )
        return telemetry(["doctor", *arguments], {"QFLOW_TELEMETRY_DOCTOR_DATABASE_URL": url})


@contextmanager
def logins(home: Home) -> Iterator[dict[str, str]]:
    """Yield the URLs of the logins; starts the embedded database for that time if none runs."""
    given = os.environ.get("QFLOW_DATABASE_URL")
    if given or home.holder() is not None:
        yield _known(home, given or _running_database(home))
        return
    with home.locked():
        if not (home.root / "postgres" / "data").exists():
            run = hints.make("run", home=home.root, env=os.environ)
            raise StandaloneError(f"no suite was ever started on {home.root}; run `{run}`")
        server = Postgres(
            home.root / "postgres",
            binaries=Binaries.find(os.environ),
            sockets=home.sockets(),
            password=home.secret("postgres.password"),
            log=home.log / "postgres.log",
        )
        server.start()
        try:
            yield _known(home, server.url())
        finally:
            server.stop()


def _known(home: Home, database_url: str) -> dict[str, str]:
    host = urlsplit(database_url).hostname
    if host:
        addresses.check_host("QFLOW_DATABASE_URL", host)
    urls = migrations.login_urls(database_url, home.root)
    if not urls:
        run = hints.make("run", home=home.root, env=os.environ)
        raise StandaloneError(
            f"{home.root} has no passwords for {host or 'it'}: "
            f"start the suite once on this folder (`{run}`)"
        )
    return urls


def _running_database(home: Home) -> str:
    try:
        return (home.secrets / "database.url").read_text(encoding="utf-8").strip()
    except OSError:
        raise StandaloneError(
            f"the suite on {home.root} uses your own database: set QFLOW_DATABASE_URL to it"
        ) from None
