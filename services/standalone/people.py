"""Make a new token for the owner; starts the embedded database for it where none runs."""

from __future__ import annotations

import os
import sys
from urllib.parse import urlsplit

import migrations
from services.standalone import bootstrap
from services.standalone.home import Home
from services.standalone.postgres import Binaries, Postgres
from services.standalone.process import StandaloneError


def renew(home: Home) -> str:
    """Give the path of the file that holds the new token."""
    given = os.environ.get("QFLOW_DATABASE_URL")
    if given or home.holder() is not None:
        return _renew(home, given or _running_database(home))
    with home.locked():
        if not (home.root / "postgres" / "data").exists():
            raise StandaloneError(f"no suite was ever started on {home.root}; run `make run`")
        server = Postgres(
            home.root / "postgres",
            binaries=Binaries.find(os.environ),
            sockets=home.sockets(),
            password=home.secret("postgres.password"),
            log=home.log / "postgres.log",
        )
        server.start()
        try:
            return _renew(home, server.url())
        finally:
            server.stop()


def _renew(home: Home, database_url: str) -> str:
    urls = migrations.login_urls(database_url, home.root)
    if not urls:
        raise StandaloneError(
            f"{home.root} knows no passwords for {urlsplit(database_url).hostname or 'it'}: "
            "start the suite once on this folder (`make run`)"
        )
    return str(bootstrap.renew_owner_token(urls, home.root))


def _running_database(home: Home) -> str:
    try:
        return (home.secrets / "database.url").read_text(encoding="utf-8").strip()
    except OSError:
        raise StandaloneError(
            f"the suite on {home.root} uses a database of yours: set QFLOW_DATABASE_URL to it"
        ) from None


def _main() -> int:
    try:
        path = renew(Home.from_env(os.environ))
    except StandaloneError as error:
        print(f"qflow: {error}")  # noqa: T201 - the face of the program
        return 1
    print(f"a new token for the owner lies in {path}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(_main())
