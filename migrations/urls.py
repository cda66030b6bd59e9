"""Database addresses: the owner's, and the same server under another login."""

from __future__ import annotations

from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict

_SCHEMES = ("postgres", "postgresql")


def driver_url(url: str) -> str:
    """Give the address as libpq reads it: a driver named in the scheme is dropped."""
    scheme, separator, rest = url.partition("://")
    address = f"postgresql://{rest}"
    if not separator or scheme.partition("+")[0] not in _SCHEMES or not _is_plain(address):
        raise ValueError(
            "QFLOW_DATABASE_URL must look like postgresql://user:password@host:5432/database "
            "(in a password @ is %40 and / is %2F)"
        )
    return address


def _is_plain(address: str) -> bool:
    """Refuse what libpq would read otherwise than it is meant, and quote in its complaint."""
    try:
        told = conninfo_to_dict(address)
    except psycopg.ProgrammingError:
        return False
    port = str(told.get("port") or "0")
    return address.split("/")[2].count("@") <= 1 and port.replace(",", "").isdigit()


def with_login(url: str, *, login: str, password: str) -> str:
    """Give the same server and database under another login."""
    parts = urlsplit(driver_url(url))
    address = parts.netloc.rpartition("@")[2]
    query = urlencode(
        [
            (key, value)
            for key, value in parse_qsl(parts.query, keep_blank_values=True)
            if key not in ("user", "password", "passfile")
        ],
        safe="/",
    )
    netloc = f"{quote(login)}:{quote(password, safe='')}@{address}"
    return urlunsplit((parts.scheme, netloc, parts.path, query, ""))
