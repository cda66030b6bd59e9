"""The first owner's way in and the services' tokens, kept as files of mode 0600."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from services.standalone.addresses import SERVICES

OWNER_TOKEN: Final = "owner.token"  # noqa: S105 - a file's name


def ensure(urls: Mapping[str, str], home: Path) -> dict[str, str]:
    """Make the owner, a token of theirs that is valid, and the services' tokens; give the latter.

    An owner's token that still works is left alone: it may be in use.
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
    """Make a new session of the owner and end the one before; give the file of its token."""
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
