"""PostgreSQL: pools, transactions, and the caller's identity for row-level security.

The only module of the suite that knows the driver. `jsonb` values are Python objects, `json` values
are their exact text.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import asyncpg
import orjson
import structlog
from asyncpg.pool import PoolConnectionProxy

from services.kit.caller import Caller
from services.kit.env import EnvError
from services.kit.errors import (
    Conflict,
    PermissionDenied,
    QflowError,
    QuotaExceeded,
    ResourceExhausted,
    Unavailable,
)
from services.kit.pg_types import KnowingConnection

log = structlog.get_logger()

Row: TypeAlias = asyncpg.Record
Db: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"

ACQUIRE_TIMEOUT_S: Final = 5.0
_IDLE_IN_TRANSACTION_S: Final = 30
_CONNECT_TIMEOUT_S: Final = 10.0
# How long a starting service waits for a server that is down or recovering, and how often it asks.
_START_MAX_S: Final = 30.0
_START_PAUSE_S: Final = 0.25
_COMMIT_MAX_S: Final = 10.0
# The client's timeout is a little longer than the server's: it only fires on a dead connection.
_LINK_GRACE_S: Final = 2.0
_UNAVAILABLE: Final = (
    "DATABASE_UNAVAILABLE",
    "the database cannot be used at the moment; try again",
)
_BY_VALUE: Final = "SET LOCAL plan_cache_mode = force_custom_plan"
_ROLES: Final = frozenset({"admin", "user", "viewer", "service"})


async def open_pool(
    url: str,
    *,
    application_name: str,
    setting: str = "the database",
    size_min: int = 1,
    size_max: int = 10,
    statement_timeout_s: float = 5.0,
    opened: Callable[[str], str] | None = None,
) -> Pool:
    """Open a pool of connections to one database under one login.

    If data is sealed at rest, `opened` decrypts what is read as `json`.

    A server that is down or recovering is waited for, since it is often started together with its
    services; a refused login or an unresolvable host fails at once. EnvError then names the setting
    that holds the URL, and never includes its password. A released connection is only rolled back:
    nothing in Qflow leaves session state.
    """
    settings = {
        "application_name": application_name,
        "statement_timeout": str(round(statement_timeout_s * 1000)),
        "idle_in_transaction_session_timeout": str(_IDLE_IN_TRANSACTION_S * 1000),
        "timezone": "UTC",
        "jit": "off",  # statements are short: compiling them costs more than running them
    }
    gives_up_at = time.monotonic() + _START_MAX_S
    awaited = False
    while True:
        try:
            pool = await asyncpg.create_pool(
                url,
                min_size=size_min,
                max_size=size_max,
                timeout=_CONNECT_TIMEOUT_S,
                command_timeout=statement_timeout_s + _LINK_GRACE_S,
                server_settings=settings,
                connection_class=KnowingConnection,
                init=partial(prepare_connection, opened=opened),
                reset=_no_further_reset,
            )
        except (OSError, ValueError, asyncpg.PostgresError) as error:
            if not _may_come(error) or time.monotonic() > gives_up_at:
                raise EnvError(f"{setting}: {_why_nobody_enters(url, error)}") from error
            if not awaited:
                log.warning("database_awaited", seconds_max=_START_MAX_S)
            awaited = True
            await asyncio.sleep(_START_PAUSE_S)
        else:
            if awaited:
                log.info("database_answered")
            return pool


def _may_come(error: Exception) -> bool:
    """Return whether a server that refuses connections now may accept them in a moment."""
    if isinstance(error, socket.gaierror):  # an unresolvable name is a mistake in a setting
        return False
    in_a_moment = ConnectionError | FileNotFoundError | TimeoutError
    return isinstance(error, in_a_moment | asyncpg.TooManyConnectionsError) or _server_is_away(
        error
    )


def _why_nobody_enters(url: str, error: Exception) -> str:
    """Return in one line why a URL opens no connection, without any part that may be a password."""
    match error:
        case socket.gaierror() | UnicodeError():
            host = urlsplit(url).hostname or ""
            return f"the host name {host!r} cannot be resolved ({error})"
        case asyncpg.PostgresError() | asyncpg.InterfaceError():
            return " ".join(str(error).split())
        case OSError():
            where = urlsplit(url).netloc.rpartition("@")[2] or "the local socket"
            return f"no server answers at {where} ({str(error) or 'time is up'})"
        case _:  # the driver's text may quote a password that was parsed as a port
            return (
                "it must look like postgresql://login:password@host:5432/database "
                "(in a password @ is %40 and / is %2F)"
            )


async def prepare_connection(
    db: asyncpg.Connection[asyncpg.Record], opened: Callable[[str], str] | None = None
) -> None:
    """Set up the codecs of a connection: `jsonb` as Python objects, `json` through `opened`."""
    if opened is not None:
        await db.set_type_codec("json", schema="pg_catalog", encoder=str, decoder=opened)
    await db.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        encoder=lambda value: orjson.dumps(value).decode(),
        decoder=orjson.loads,
    )


async def _no_further_reset(_db: object) -> None:
    """Replace the driver's reset query: the driver has already rolled back before it."""


@asynccontextmanager
async def transaction(pool: Pool, *, durable: bool = True) -> AsyncIterator[Db]:
    """Run one transaction: it commits at the end of the block and rolls back on any exception.

    If it is not `durable`, it commits without waiting for the disk: a crash of the server may lose
    the last of such transactions, each as a whole.
    """
    begin = "BEGIN" if durable else "BEGIN; SET LOCAL synchronous_commit = off"
    async with _begun(pool, begin) as db:
        yield db


@asynccontextmanager
async def as_caller(
    pool: Pool, caller: Caller, *, plans_by_value: bool = False, durable: bool = True
) -> AsyncIterator[Db]:
    """Run one transaction in which row-level security applies to this caller.

    BEGIN and the identity take one round trip, and the identity ends with the transaction. With
    `plans_by_value` each statement is planned for its actual parameters, which takes about a
    millisecond: for statements whose best plan depends on them. `durable` is as in `transaction`.
    """
    assert caller.role in _ROLES, caller.role
    begin = (
        f"BEGIN; SELECT set_config('qflow.user_id', '{caller.user_id}', true),"
        f" set_config('qflow.tenant_id', '{caller.tenant_id}', true),"
        f" set_config('qflow.role', '{caller.role}', true)"
    )
    if plans_by_value:
        begin += f"; {_BY_VALUE}"
    if not durable:
        begin += "; SET LOCAL synchronous_commit = off"
    async with _begun(pool, begin) as db:
        yield db


@asynccontextmanager
async def planned_by_value(db: Db) -> AsyncIterator[None]:
    """Within a transaction, plan statements of the block for their actual parameters.

    Use it for reads before writes only: the checks of foreign keys would be planned per row.
    """
    await db.execute(_BY_VALUE)
    yield
    await db.execute("SET LOCAL plan_cache_mode = auto")


@asynccontextmanager
async def connection(pool: Pool) -> AsyncIterator[Db]:
    """Lend a connection for a single statement, which is a transaction by itself.

    An unavailable server is reported as the same error wherever it is noticed.
    """
    try:
        db = await pool.acquire(timeout=ACQUIRE_TIMEOUT_S)
    except TimeoutError:
        raise Unavailable(
            "DATABASE_BUSY", "no database connection was free in time; try again", retry_after_s=1.0
        ) from None
    # Refused, or the socket's file is gone: the server is down, or the database accepts nobody.
    except (OSError, asyncpg.ObjectNotInPrerequisiteStateError) as error:
        raise Unavailable(*_UNAVAILABLE, retry_after_s=1.0) from error
    except asyncpg.PostgresError as error:  # it is there, but still starting or already stopping
        raise translate(error) or error from error
    try:
        yield db
    except Exception as error:
        if _server_is_away(error):
            raise Unavailable(*_UNAVAILABLE, retry_after_s=1.0) from error
        raise
    finally:
        await _give_back(pool, db)


@asynccontextmanager
async def _begun(pool: Pool, begin: str) -> AsyncIterator[Db]:
    async with connection(pool) as db:
        await db.execute(begin)
        yield db
        await _commit(db)


def _server_is_away(error: Exception) -> bool:
    match error:
        case asyncpg.PostgresError():
            state = error.sqlstate or ""
            return state.startswith("08") or state in {"57P01", "57P02", "57P03"}
        case asyncpg.InterfaceError():
            return "clos" in str(error)
        case asyncpg.InternalClientError():
            # The driver's own state after a connection broke in the middle of a statement.
            return True
        case _:
            return isinstance(error, ConnectionError)


async def _commit(db: Db) -> None:
    with given_up_after(db, _COMMIT_MAX_S):
        outcome = await _to_its_end(db.execute("COMMIT", timeout=_COMMIT_MAX_S * 2))
    if outcome != "COMMIT":
        # A failed statement's error was swallowed: PostgreSQL rolled everything back.
        raise RuntimeError(f"the transaction ended in {outcome}")


@contextmanager
def given_up_after(db: Db, seconds: float) -> Iterator[None]:
    """Drop the connection if a commit takes longer, before the driver's own timeout.

    On timeout the driver asks the server to cancel. A server that waits for a synchronous replica
    would then stop waiting: the commit would be visible, but exist on that server only.
    """
    giving_up = asyncio.get_running_loop().call_later(seconds, db.terminate)
    try:
        yield
    finally:
        giving_up.cancel()


async def _give_back(pool: Pool, db: PoolConnectionProxy[asyncpg.Record]) -> None:
    """Roll back an open, failed transaction, and release; a broken connection is closed."""
    try:
        if db.is_in_transaction():
            await _to_its_end(db.execute("ROLLBACK"))
    except (
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
        OSError,
    ):
        log.info("connection_lost")
    finally:
        # A broken connection may have left the pool by itself already.
        with suppress(asyncpg.InternalClientError, asyncpg.InterfaceError):
            await pool.release(db)


async def _to_its_end(statement: Coroutine[Any, Any, str]) -> str:
    """Run a statement whose outcome must be known, even if the caller is cancelled meanwhile."""
    running = asyncio.ensure_future(statement)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


# How a broken connection to the database shows on this side.
LINK_FAULTS: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)

_CHANGED: Final = ("CONCURRENT_CHANGE", "another change got in between; try again")
_TOO_SLOW: Final = ("DATABASE_SLOW", "the database took too long; try again")
FILE_QUOTA_REACHED: Final = "FILE_QUOTA_REACHED"
_FILES_OVER_QUOTA: Final = "QF003"
_FULL: Final = ("DATABASE_FULL", "the database has no room left; an operator must make some")


def translate(error: BaseException) -> QflowError | None:
    """Return a database error as a caller may see it; None if it is not one that callers cause.

    The texts are generic on purpose: those of the driver may quote values and names.
    """
    match error:
        case asyncpg.PostgresError() if error.sqlstate == _FILES_OVER_QUOTA:
            return _files_over_quota(getattr(error, "detail", None))
        case asyncpg.PostgresError():
            return _translate_state(error.sqlstate or "")
        case asyncpg.InterfaceError() if "clos" in str(error):
            # "connection is closed", "pool is closing"; other interface errors are bugs of ours.
            return Unavailable(*_UNAVAILABLE, retry_after_s=1.0)
        case ConnectionError() | asyncpg.InternalClientError():
            return Unavailable(*_UNAVAILABLE, retry_after_s=1.0)
        case TimeoutError():  # the connection is silent: not even the server's timeout arrived
            return Unavailable(*_TOO_SLOW, retry_after_s=1.0)
        case _:
            return None


_STATES: Final[Mapping[str, tuple[type[QflowError], tuple[str, str], float]]] = {
    "40001": (Conflict, _CHANGED, 0.05),
    "40P01": (Conflict, _CHANGED, 0.05),
    "55P03": (Conflict, _CHANGED, 0.05),
    # Writers check for duplicates first, so a violation means that another write came in between.
    "23505": (Conflict, _CHANGED, 0.05),
    "57014": (Unavailable, _TOO_SLOW, 1.0),
    "57P01": (Unavailable, _UNAVAILABLE, 1.0),
    "57P02": (Unavailable, _UNAVAILABLE, 1.0),
    "57P03": (Unavailable, _UNAVAILABLE, 1.0),
    "25006": (Unavailable, _UNAVAILABLE, 5.0),
    "25P03": (Unavailable, _TOO_SLOW, 1.0),
    "53300": (Unavailable, _UNAVAILABLE, 1.0),
    "53100": (ResourceExhausted, _FULL, 30.0),
    "53200": (ResourceExhausted, _FULL, 5.0),
    "42501": (
        PermissionDenied,
        ("NOT_ALLOWED", "this row or table is not the caller's to change"),
        0.0,
    ),
}
_CLASSES: Final[Mapping[str, tuple[type[QflowError], tuple[str, str], float]]] = {
    "08": (Unavailable, _UNAVAILABLE, 1.0),
    "28": (Unavailable, _UNAVAILABLE, 5.0),
    "53": (ResourceExhausted, _FULL, 5.0),
}


def _translate_state(sqlstate: str) -> QflowError | None:
    found = _STATES.get(sqlstate) or _CLASSES.get(sqlstate[:2])
    if found is None:
        return None
    kind, (reason, message), retry_after_s = found
    return kind(reason, message, retry_after_s=retry_after_s or None)


def _files_over_quota(detail: str | None) -> QflowError:
    """Name the exceeded quota, with the numbers that the trigger reports; none of them is secret.

    There is no time to retry after: it stays exceeded until files are deleted.
    """
    if not detail:
        return ResourceExhausted(
            FILE_QUOTA_REACHED, "the tenant's files are at their quota; delete some"
        )
    told = orjson.loads(detail)
    return QuotaExceeded(
        FILE_QUOTA_REACHED,
        f"the tenant's quota {told['quota']} is {told['limit']}, and {told['used']} of it are "
        "used: with this it would be more; delete files, or ask an administrator for more",
        **told,
    )


def facts_of(error: BaseException) -> dict[str, Any]:
    """Return what to log about a database error besides its text."""
    if isinstance(error, asyncpg.PostgresError):
        return {"sqlstate": error.sqlstate, "constraint": getattr(error, "constraint_name", None)}
    return {}
