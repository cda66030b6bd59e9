"""Sign in and out; list and revoke sessions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import structlog

from services.kit.audit import tell_change
from services.kit.caller import Caller
from services.kit.errors import InvalidArgument, NotFound, Unauthenticated
from services.kit.idempotency import Replayed, RequestKey
from services.kit.ids import new_token, token_sha256, uuid7
from services.kit.pg import Db, as_caller, transaction
from services.registry.domain import accounts
from services.registry.domain.identity import User, check_password, email_from
from services.registry.domain.lockout import Keys
from services.registry.storage import identity, users
from services.registry.storage import sessions as storage
from services.registry.storage.sessions import Session
from services.registry.usecases.identity import (
    Identity,
    check_reaches,
    is_administrator,
    note,
    write,
)
from services.registry.usecases.lockout import attempt, forgive

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A new session; its token is returned only here."""

    token: str
    expires_at: datetime
    user: User


async def sign_in(deps: Identity, *, email: str, password: str, peer: str) -> SignedIn:
    """Exchange an email address and a password for a session token.

    An unknown address, a wrong password and a deactivated user get the same response in the same
    time, and the same delays after many failures. Two hashes are computed at once; if too many
    calls are queued, raises ResourceExhausted.
    """
    check_password(password)
    try:
        address = email_from(email)
    except InvalidArgument:
        # No user has such an address, but the response must not reveal that it is invalid.
        address = ""
    async with attempt(deps.auth_pool, address or email, peer) as keys:
        async with transaction(deps.auth_pool) as db:
            user = await identity.get_user_by_email(db, address) if address else None
        # No connection is held while the hash is computed.
        right = await deps.passwords.verify(user.password_hash if user else None, password)
        if user is None or user.password_hash is None or not right or not user.is_active:
            raise refused()
        signed_in = await _open(deps, user, user.password_hash, keys)
    if deps.passwords.is_outdated(user.password_hash):
        renewed = await deps.passwords.hash(password)
        async with transaction(deps.auth_pool) as db:
            await identity.update_password_hash(db, user.id, renewed, was=user.password_hash)
    log.info("signed_in", user_id=str(user.id))
    tell_change({}, {"user_id": str(user.id)})
    return signed_in


def refused() -> Unauthenticated:
    """Return the one error for every failed sign-in."""
    return Unauthenticated("SIGN_IN_REFUSED", "the email address or the password is wrong")


async def _open(deps: Identity, user: User, password_hash: str, keys: Keys) -> SignedIn:
    token = new_token()
    async with transaction(deps.auth_pool) as db:
        expires_at = await storage.open_session(
            db,
            uuid7(),
            user.id,
            digest=token_sha256(token),
            lifetime=deps.session_lifetime,
            password_hash=password_hash,
        )
        if expires_at is None:  # the password changed, or the user was deactivated, meanwhile
            raise refused()
        await forgive(db, keys)
    return SignedIn(token, expires_at, user)


async def sign_out(deps: Identity, caller: Caller) -> None:
    """End the caller's session."""
    async with transaction(deps.auth_pool) as db:
        digest = await identity.delete_session(db, caller.session_id, user_id=caller.user_id)
    if digest is not None:
        deps.forget(digest)
    log.info("signed_out", user_id=str(caller.user_id))


async def list_sessions(
    deps: Identity,
    caller: Caller,
    user_id: UUID | None,
    *,
    after: tuple[datetime, UUID] | None,
    limit: int,
) -> Sequence[Session]:
    """List the sessions of the caller, or of any user for an administrator, newest first."""
    whose = user_id or caller.user_id
    of_another = check_reaches(caller, whose, scope="users:read")
    async with as_caller(deps.auth_pool, caller) as db:
        if of_another:
            await _check_exists(db, whose)
            await note(db, caller, "sessions.list", ("user", whose))
        return await storage.list_sessions(db, whose, after=after, limit=limit)


async def revoke_session(
    deps: Identity, caller: Caller, session_id: UUID, *, key: RequestKey[None] | None = None
) -> Replayed | None:
    """Revoke a session of the caller, or of any user for an administrator."""
    ended: list[str] = []

    async def change(db: Db) -> None:
        anybodys = is_administrator(caller, scope="users:write")
        found = await storage.delete_session(
            db, session_id, user_id=None if anybodys else caller.user_id
        )
        if found is None:
            raise NotFound(
                "SESSION_NOT_FOUND",
                "there is no such session",
                resource=("session", str(session_id)),
            )
        digest, user_id = found
        ended.append(digest)
        await note(
            db, caller, "session.revoke", ("session", session_id), before={"user_id": str(user_id)}
        )

    answer = await write(deps, caller, key, change)
    deps.forget_all(ended)
    return answer


async def revoke_all_sessions(
    deps: Identity, caller: Caller, user_id: UUID | None, *, key: RequestKey[int] | None = None
) -> int | Replayed:
    """Revoke the caller's other sessions, or all of a user's for an administrator.

    Returns how many sessions ended.
    """
    whose = user_id or caller.user_id
    of_another = check_reaches(caller, whose, scope="users:write")
    ended: list[str] = []

    async def change(db: Db) -> int:
        if of_another:
            await _check_exists(db, whose)
        keep = None if of_another else caller.session_id
        ended.extend(await storage.delete_sessions(db, whose, keep=keep))
        await note(db, caller, "sessions.revoke_all", ("user", whose), before={"count": len(ended)})
        return len(ended)

    answer = await write(deps, caller, key, change)
    deps.forget_all(ended)
    return answer


async def _check_exists(db: Db, user_id: UUID) -> None:
    if await users.get_user(db, user_id) is None:
        raise accounts.not_found(user_id)
