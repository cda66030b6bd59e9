"""Authentication: whose token a call carries, and which tenant it acts for."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, LiteralString, NamedTuple
from uuid import UUID

from services.kit.caller import Caller, Scopes
from services.kit.errors import InvalidArgument, PermissionDenied, Unauthenticated, Unavailable
from services.kit.ids import TOKEN_BYTES_MAX, canonical_uuid, token_sha256
from services.kit.pg import Pool, translate
from services.kit.rpc.call import Metadata

CACHE_S: Final = 5.0
RECHECK_S: Final = 60.0
# A member who was removed from a team must lose access within five seconds.
TEAM_CACHE_S: Final = 2.0
# Metadata key of the tenant that a call acts for; without it the token's own.
TENANT_KEY: Final = "qflow-tenant"
_CACHE_SIZE_MAX: Final = 4096
_HEADER: Final = "authorization"
_SCHEME: Final = "bearer"
_NEVER: Final = datetime.max.replace(tzinfo=UTC)
_NOBODY: Final = UUID(int=0)

_AUTHENTICATE: Final[LiteralString] = """
    SELECT user_id, tenant_id, role, is_owner, kind, name, scopes, session_id, expires_at, team_role
      FROM authenticate($1, $2)
"""


class Credential(NamedTuple):
    """What a call presents: the digest of a token, and the tenant to act for, if any."""

    digest: str
    tenant_id: UUID | None = None


@dataclass(slots=True)
class _Known:
    caller: Caller | None  # None: unknown token, or no member of the tenant
    is_stranger: bool  # a known user who is no member of the tenant
    until: float  # by the monotonic clock
    expires_s: float  # when the token expires, by the wall clock


class Authenticator:
    """Authenticates tokens, and caches the answers for at most five seconds.

    It only asks the database: an identity must not come from a cache that others can write. While
    the database is away, a token that is not cached is `Unavailable`, never refused.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        recheck_s: float = RECHECK_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.recheck_s = recheck_s
        self._pool = pool
        self._clock = clock
        self._hits = self._misses = 0
        self._known: OrderedDict[Credential, _Known] = OrderedDict()
        self._unknown: OrderedDict[Credential, _Known] = OrderedDict()
        self._asking: dict[Credential, asyncio.Task[_Known]] = {}

    async def authenticate(self, credential: Credential) -> Caller:
        """Return the caller that a token belongs to, with their role in the tenant.

        Raises `Unauthenticated` for an unknown token, `PermissionDenied` for a non-member.
        """
        return self.remembered(credential) or await self._asked(credential)

    def remembered(self, credential: Credential) -> Caller | None:
        """Return the caller from the cache; None if it is not there or has expired."""
        known = self._known.get(credential)
        if known is None or known.until <= self._clock() or known.expires_s <= time.time():
            return None
        self._hits += 1
        return known.caller

    async def _asked(self, credential: Credential) -> Caller:
        known = self._known.get(credential) or self._unknown.get(credential)
        if known is None or known.until <= self._clock():
            self._misses += 1
            known = await self._ask_once(credential)
        else:
            self._hits += 1
        if known.is_stranger:
            raise PermissionDenied(
                "NOT_A_MEMBER",
                f"the caller may not act for the tenant that {TENANT_KEY} names",
            )
        if known.caller is None or known.caller.expires_at <= datetime.now(UTC):
            raise _refused()
        return known.caller

    def asked(self) -> tuple[int, int]:
        """Return the numbers of cache hits and misses."""
        return self._hits, self._misses

    def forget(self, digest: str) -> None:
        """Drop a token from this process's cache, after it was revoked."""
        for each in [known for known in self._known if known.digest == digest]:
            del self._known[each]

    def forget_member(self, tenant_id: UUID, user_id: UUID) -> None:
        """Drop a member of a team from this process's cache."""
        gone = [
            credential
            for credential, known in self._known.items()
            if known.caller is not None
            and (known.caller.tenant_id, known.caller.user_id) == (tenant_id, user_id)
        ]
        for each in gone:
            del self._known[each]

    async def _ask_once(self, credential: Credential) -> _Known:
        """Query the database; concurrent calls with the same token share one query."""
        asking = self._asking.get(credential)
        if asking is None:
            asking = asyncio.create_task(self._ask(credential))
            self._asking[credential] = asking
            asking.add_done_callback(lambda _: self._asking.pop(credential, None))
        # Shielded: the first caller may be cancelled while others wait for the answer.
        return await asyncio.shield(asking)

    async def _ask(self, credential: Credential) -> _Known:
        began = self._clock()  # before the query: the answer may be as old as that
        try:
            row = await self._pool.fetchrow(_AUTHENTICATE, *credential)
        except (OSError, TimeoutError) as error:
            raise _unavailable() from error
        except Exception as error:
            if translate(error) is None:
                raise
            raise _unavailable() from error
        is_stranger = row is not None and row["tenant_id"] is None
        caller = None if row is None or is_stranger else _to_caller(row, credential.digest)
        # Separate caches: guesses must not evict valid tokens.
        known, other = self._known, self._unknown
        if caller is None:
            known, other = other, known
        other.pop(credential, None)  # the other cache must not hide this answer
        expires_s = 0.0 if caller is None else _posix_s(caller.expires_at)
        in_team = is_stranger or (caller is not None and caller.team_role != "")
        until = began + (TEAM_CACHE_S if in_team else CACHE_S)
        told = known[credential] = _Known(caller, is_stranger, until, expires_s)
        known.move_to_end(credential)
        while len(known) > _CACHE_SIZE_MAX:
            known.popitem(last=False)
        return told


def credential_of(metadata: Metadata) -> Credential:
    """Return the digest of the only bearer token, and the tenant; the token itself is dropped."""
    headers: list[str | bytes] = []
    tenants: list[str | bytes] = []
    for key, value in metadata:
        if key == _HEADER:
            headers.append(value)
        elif key == TENANT_KEY:
            tenants.append(value)
    digest = _digest_of(headers)
    return Credential(digest, _tenant_of(tenants) if tenants else None)


def _tenant_of(headers: list[str | bytes]) -> UUID:
    named = headers[0] if len(headers) == 1 else None
    found = canonical_uuid(named) if isinstance(named, str) else None
    if found is None:
        raise InvalidArgument(
            "TENANT_INVALID", f"{TENANT_KEY} in the metadata must be the id of one tenant"
        )
    return found


def _digest_of(headers: list[str | bytes]) -> str:
    if len(headers) != 1 or not isinstance(headers[0], str):
        raise _refused()
    scheme, _, token = headers[0].partition(" ")
    if scheme.lower() != _SCHEME or not token or not token.isascii() or not token.isprintable():
        raise _refused()
    if len(token) > TOKEN_BYTES_MAX or " " in token:
        raise _refused()
    return token_sha256(token)


def _refused() -> Unauthenticated:
    # One text for every cause: which one it was would help an attacker.
    return Unauthenticated(
        "TOKEN_REFUSED",
        "a valid token is needed in the metadata: `authorization: Bearer <token>`",
    )


def _unavailable() -> Unavailable:
    return Unavailable(
        "IDENTITY_UNAVAILABLE",
        "the caller cannot be authenticated at the moment; try again",
        retry_after_s=1.0,
    )


def _posix_s(moment: datetime) -> float:
    return math.inf if moment is _NEVER else moment.timestamp()


def _to_caller(row: Any, digest: str) -> Caller:
    expires_at = row["expires_at"] or _NEVER
    if expires_at.tzinfo is None:  # how the driver returns infinity
        expires_at = _NEVER
    return Caller(
        user_id=row["user_id"],
        tenant_id=row["tenant_id"] or _NOBODY,
        role=row["role"],
        is_owner=bool(row["is_owner"]),
        scopes=_scopes(row["kind"], frozenset(row["scopes"] or ())),
        kind=row["kind"],
        name=row["name"],
        session_id=row["session_id"] or _NOBODY,
        expires_at=expires_at,
        team_role=row["team_role"],
        token_digest=digest,
    )


def _scopes(kind: str, listed: frozenset[str]) -> Scopes:
    """Return the scopes of a token as the database reports them.

    Kind "user" is a session: it has all scopes of its role and lists none. A more restricted token
    must list its scopes or be of another kind, which no rule admits until it is known.
    """
    return "all" if kind == "user" and not listed else listed
