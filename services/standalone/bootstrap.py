"""The first owner's credentials and the services' tokens, kept as files of mode 0600."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from services.standalone.addresses import SERVICES

OWNER_TOKEN: Final = "owner.token"  # noqa: S105 - a file's name


def ensure(urls: Mapping[str, str], home: Path) -> dict[str, str]:
    """Create the owner, a valid token of theirs and the services' tokens.

    Returns the services' tokens by name. An owner's token that still works is kept, since it may be
    in use.
    """
    from services.registry.usecases import bootstrap  # late: the lean supervisor never needs it

    async def make() -> dict[str, str]:
        url = urls["qflow_registry_auth"]
        if not _is_valid(urls["qflow_registry"], home / "secrets" / OWNER_TOKEN):
            await bootstrap.bootstrap_owner(url, home)
        return {
            name: await bootstrap.service_token(url, home, name=name, scopes=[name])
            for name in SERVICES
        }

    return asyncio.run(make())


def renew_owner_token(urls: Mapping[str, str], home: Path) -> Path:
    """Create a new session for the owner and end the previous one; returns the token's file."""
    from services.registry.usecases import bootstrap

    return asyncio.run(bootstrap.bootstrap_owner(urls["qflow_registry_auth"], home))


def _is_valid(url: str, file: Path) -> bool:
    import psycopg  # late, as above

    try:
        token = file.read_text(encoding="ascii").strip()
    except OSError:
        return False
    digest = hashlib.sha256(token.encode()).hexdigest()
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT is_owner FROM authenticate(%s)", (digest,)).fetchone()
    return found == (True,)
