"""Who is calling and may they: denied unless the RPC's own rule in the contract says otherwise."""

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

import structlog
from qflow.auth.v1 import auth_pb2

from services.kit.caller import CALLER, Caller, Scopes
from services.kit.errors import (
    InvalidArgument,
    PermissionDenied,
    QflowError,
    Unauthenticated,
    Unavailable,
)
from services.kit.ids import TOKEN_BYTES_MAX, canonical_uuid, token_sha256
from services.kit.pg import Pool, translate
from services.kit.rpc.call import Call, Handle, Metadata, Method
from services.kit.rpc.tls import prove_service

log = structlog.get_logger()

CACHE_S: Final = 5.0
RECHECK_S: Final = 60.0
# Whoever is taken out of a team is out within five seconds, from open streams too: so long an
# answer holds, and so long a stream goes without asking.
TEAM_CACHE_S: Final = 2.0
TEAM_RECHECK_S: Final = 2.0
# The tenant that a call acts for; without it the token's own.
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
    """What a call says of its caller: the digest of a token, and the tenant to act for, if any."""

    digest: str
    tenant_id: UUID | None = None


@dataclass(slots=True)
class _Known:
    caller: Caller | None  # None: nobody, or no member of the tenant
    is_stranger: bool  # whether somebody, who is no member
    until: float  # by the monotonic clock
    expires_s: float  # when the token does, by the other clock


class Authenticator:
    """Tells whose token it is; remembers the answer for at most five seconds.

    It asks the database and nothing else: an identity must not come from a cache that others can
    write. While the database is away, what is not remembered is `Unavailable`, never refused.
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
        """Return whose token this is, as they are in the tenant that it is used for.

        `Unauthenticated` when nobody has it, `PermissionDenied` where they are no member of that.
        """
        return self.remembered(credential) or await self._asked(credential)

    def remembered(self, credential: Credential) -> Caller | None:
        """Return the caller without asking anybody; None where that cannot be told."""
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
        """Tell how often a token was known, and how often it was asked for."""
        return self._hits, self._misses

    def forget(self, digest: str) -> None:
        """Forget a token at once, in this process: for whoever has just revoked it."""
        for each in [known for known in self._known if known.digest == digest]:
            del self._known[each]

    def forget_member(self, tenant_id: UUID, user_id: UUID) -> None:
        """Forget at once, in this process, what somebody was in a team."""
        gone = [
            credential
            for credential, known in self._known.items()
            if known.caller is not None
            and (known.caller.tenant_id, known.caller.user_id) == (tenant_id, user_id)
        ]
        for each in gone:
            del self._known[each]

    async def _ask_once(self, credential: Credential) -> _Known:
        """Ask the database; calls that come meanwhile with the same token share the question."""
        asking = self._asking.get(credential)
        if asking is None:
            asking = asyncio.create_task(self._ask(credential))
            self._asking[credential] = asking
            asking.add_done_callback(lambda _: self._asking.pop(credential, None))
        # Shielded: the one who asked first may go away while others wait for the answer.
        return await asyncio.shield(asking)

    async def _ask(self, credential: Credential) -> _Known:
        began = self._clock()  # from before the question: its answer is no younger
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
        # Apart from each other: whoever tries tokens must not push out those that are good.
        known, other = self._known, self._unknown
        if caller is None:
            known, other = other, known
        other.pop(credential, None)  # what it was said before must not hide the answer
        expires_s = 0.0 if caller is None else _posix_s(caller.expires_at)
        in_team = is_stranger or (caller is not None and caller.team_role != "")
        until = began + (TEAM_CACHE_S if in_team else CACHE_S)
        told = known[credential] = _Known(caller, is_stranger, until, expires_s)
        known.move_to_end(credential)
        while len(known) > _CACHE_SIZE_MAX:
            known.popitem(last=False)
        return told


class Gate:
    """Lets through whom the rule of a method admits.

    With `services_prove` a service must also be the one that its connection's certificate names.
    """

    def __init__(
        self, rule: auth_pb2.AuthRule, authenticator: Authenticator, *, services_prove: bool = False
    ) -> None:
        # What `check` says of everybody, looked up instead of asked of the rule with every call.
        self._admitted = {
            (kind, role)
            for kind, role in _CALLERS
            if any(_admits(audience, kind, role, rule) for audience in rule.audiences)
        }
        self._rule, self._scope = rule, rule.scope
        self._authenticator = authenticator
        self._services_prove = services_prove

    def enter_known(self, call: Call) -> bool:
        """Let a call through whose token is remembered; False for one that must be asked for."""
        caller = self._authenticator.remembered(credential_of(call.metadata))
        if caller is None:
            return False
        self._enter(call, caller)
        return True

    async def enter(self, call: Call) -> None:
        """Let a call through."""
        self._enter(call, await self._authenticator.authenticate(credential_of(call.metadata)))

    async def leave(self, call: Call) -> None:
        """Hold an answer back from whoever was taken out of their team while they waited for it."""
        caller = await self._authenticator.authenticate(credential_of(call.metadata))
        check(caller, self._rule)

    def _enter(self, call: Call, caller: Caller) -> None:
        call.caller = caller
        if (caller.kind, caller.role) not in self._admitted or not caller.has_scope(self._scope):
            check(caller, self._rule)
        if self._services_prove and caller.kind == "service":
            prove_service(call.context, caller.name)
        CALLER.set(caller)  # in the context of the call's own task, with which it goes


def gate(
    method: Method, authenticator: Authenticator, *, services_prove: bool = False
) -> Gate | None:
    """Make the gate of a method; None where it answers anybody."""
    if method.rule is None or method.anonymous:
        return None
    return Gate(method.rule, authenticator, services_prove=services_prove)


def stage(
    inner: Handle, method: Method, authenticator: Authenticator, *, services_prove: bool = False
) -> Handle:
    """Let through whom the rule admits, and end streams of those it no longer does."""
    entry, rule = gate(method, authenticator, services_prove=services_prove), method.rule
    if entry is None or rule is None:
        return inner

    async def handle(call: Call, request: Any) -> Any:
        await entry.enter(call)
        recheck = _Recheck(authenticator, credential_of(call.metadata), rule)
        return await _rechecked(call, request, inner, recheck)

    return handle


def check(caller: Caller, rule: auth_pb2.AuthRule) -> None:
    """Raise unless the rule admits the caller."""
    admitted = any(_admits(audience, caller.kind, caller.role, rule) for audience in rule.audiences)
    if not admitted or not caller.has_scope(rule.scope):
        raise PermissionDenied(
            "NOT_ALLOWED",
            f"this call needs {_needed(rule)}",
            role=caller.role,
            scope=rule.scope,
        )


def _admits(
    audience: auth_pb2.Audience.ValueType, kind: str, role: str, rule: auth_pb2.AuthRule
) -> bool:
    match audience:
        case auth_pb2.AUDIENCE_USER:
            return kind == "user" and _ROLES.get(role) in rule.roles
        case auth_pb2.AUDIENCE_SERVICE:
            return kind == "service"
        case _:
            return False


@dataclass(frozen=True, slots=True)
class _Recheck:
    authenticator: Authenticator
    credential: Credential
    rule: auth_pb2.AuthRule

    async def until_refused(self, caller: Caller) -> QflowError:
        """Return when the caller of an open stream must go, with the reason."""
        recheck_s = self.authenticator.recheck_s
        if caller.team_role:
            recheck_s = min(recheck_s, TEAM_RECHECK_S)
        while True:
            await asyncio.sleep(recheck_s)
            try:
                check(await self.authenticator.authenticate(self.credential), self.rule)
            except Unavailable as error:
                # A service outlives the database's absence; whether a user may still see
                # what the stream shows is not known any more.
                if caller.kind == "user":
                    return error
            except QflowError as error:
                return error


async def _rechecked(call: Call, request: Any, inner: Handle, recheck: _Recheck) -> Any:
    assert call.caller is not None
    watching = asyncio.create_task(recheck.until_refused(call.caller))
    streaming = asyncio.current_task()
    assert streaming is not None
    refused = False

    def end_stream(done: asyncio.Task[QflowError]) -> None:
        nonlocal refused
        if not done.cancelled():
            refused = True
            streaming.cancel()

    watching.add_done_callback(end_stream)
    try:
        return await inner(call, request)
    except asyncio.CancelledError:
        # Only our own cancellation becomes an answer; the client's or the server's stands.
        if refused and streaming.uncancel() == 0:
            raise await watching from None
        raise
    finally:
        watching.remove_done_callback(end_stream)
        watching.cancel()


def credential_of(metadata: Metadata) -> Credential:
    """Return the digest of the one bearer token, and the tenant; the token goes no further."""
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
    # One text for every way to be unknown: which one it was is nobody's business.
    return Unauthenticated(
        "TOKEN_REFUSED",
        "a valid token is needed in the metadata: `authorization: Bearer <token>`",
    )


def _unavailable() -> Unavailable:
    return Unavailable(
        "IDENTITY_UNAVAILABLE",
        "who is calling cannot be told at the moment; try again",
        retry_after_s=1.0,
    )


_ROLES: Final = {
    "viewer": auth_pb2.ROLE_VIEWER,
    "user": auth_pb2.ROLE_USER,
    "admin": auth_pb2.ROLE_ADMIN,
}


_CALLERS: Final = (
    *(("user", role) for role in (*_ROLES, "service")),
    *(("service", role) for role in (*_ROLES, "service")),
)


def _needed(rule: auth_pb2.AuthRule) -> str:
    callers = []
    if auth_pb2.AUDIENCE_USER in rule.audiences:
        roles = [name for name, number in _ROLES.items() if number in rule.roles]
        callers.append(f"a user with the role {' or '.join(roles)} and the scope {rule.scope}")
    if auth_pb2.AUDIENCE_SERVICE in rule.audiences:
        callers.append(f"a service token with the scope {rule.scope}")
    return " or ".join(callers)


def _posix_s(moment: datetime) -> float:
    return math.inf if moment is _NEVER else moment.timestamp()


def _to_caller(row: Any, digest: str) -> Caller:
    expires_at = row["expires_at"] or _NEVER
    if expires_at.tzinfo is None:  # how the driver gives infinity
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
    """Read the scopes of a token as the database tells them.

    What it calls a user is a session: that has all scopes of its role, and lists none. A narrower
    token has to list its own, or to be of another kind, which no rule admits until it is known.
    """
    return "all" if kind == "user" and not listed else listed
