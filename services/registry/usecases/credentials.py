"""Passwords: set for the first time, changed, and reset."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import structlog

from services.kit.caller import Caller
from services.kit.errors import Unauthenticated
from services.kit.idempotency import Replayed, RequestKey
from services.kit.ids import new_token, token_sha256
from services.kit.pg import Db, as_caller, transaction
from services.registry.domain import accounts
from services.registry.domain.accounts import Account
from services.registry.domain.identity import PASSWORD_CHARS_MIN, check_password
from services.registry.storage import audit, credential_tokens, sessions, users
from services.registry.storage.credential_tokens import Purpose
from services.registry.usecases.identity import Identity, not_the_owner, note, write
from services.registry.usecases.lockout import attempt, forgive
from services.registry.usecases.sessions import refused

log = structlog.get_logger()

RESET: Final = timedelta(days=1)
RESET_PREFIX: Final = "qf_reset"


@dataclass(frozen=True, slots=True)
class Reset:
    """A token for setting a new password; it is returned only here."""

    token: str
    expires_at: datetime


async def accept_invitation(deps: Identity, *, token: str, password: str) -> Account:
    """Set the first password of an invited user."""
    account, _ = await _redeem(deps, "invitation", token=token, password=password)
    log.info("invitation_accepted", user_id=str(account.id))
    return account


async def reset_password(deps: Identity, *, token: str, password: str) -> int:
    """Set a new password by a reset token; returns how many sessions this ended."""
    account, ended = await _redeem(deps, "password_reset", token=token, password=password)
    deps.forget_all(ended)
    log.info("password_reset", user_id=str(account.id))
    return len(ended)


async def create_reset(
    deps: Identity,
    caller: Caller,
    user_id: UUID,
    *,
    lifetime: timedelta = RESET,
    key: RequestKey[Reset] | None = None,
) -> Reset | Replayed:
    """Create a reset token; it replaces any open invitation or reset token of the user."""
    token = new_token(RESET_PREFIX)

    async def change(db: Db) -> Reset:
        account = await users.lock_user(db, user_id)
        if account is None:
            raise accounts.not_found(user_id)
        # Otherwise any administrator could take over the owner's account.
        if account.is_owner and account.id != caller.user_id:
            raise not_the_owner()
        if account.state not in {"active", "invited"}:
            raise accounts.not_active(account)
        expires_at = await credential_tokens.upsert_token(
            db,
            user_id,
            "password_reset",
            digest=token_sha256(token),
            lifetime=lifetime,
            created_by=caller.user_id,
        )
        await note(db, caller, "user.create_password_reset", ("user", user_id))
        return Reset(token, expires_at)

    return await write(deps, caller, key, change)


async def change_password(deps: Identity, caller: Caller, *, old: str, new: str, peer: str) -> int:
    """Set the caller's password; returns how many other sessions this ended.

    A wrong old password counts as a failed sign-in, so that a stolen session cannot be used to
    guess the password.
    """
    check_password(old, field="old_password")
    check_password(new, field="new_password", chars_min=PASSWORD_CHARS_MIN)
    async with transaction(deps.auth_pool) as db:
        known = await users.get_password(db, caller.user_id)
    if known is None:
        raise refused()
    email, password_hash = known
    async with attempt(deps.auth_pool, email, peer) as keys:
        right = await deps.passwords.verify(password_hash, old)
        if not right:
            raise refused()
        changed = await deps.passwords.hash(new)
        async with as_caller(deps.auth_pool, caller) as db:
            if await users.set_password(db, caller.user_id, changed, was=password_hash) is None:
                raise refused()  # changed concurrently
            await credential_tokens.delete_token(db, caller.user_id)
            ended = await sessions.delete_sessions(db, caller.user_id, keep=caller.session_id)
            await note(db, caller, "user.change_password", ("user", caller.user_id))
            await forgive(db, keys)
    deps.forget_all(ended)
    log.info("password_changed", user_id=str(caller.user_id))
    return len(ended)


async def _redeem(
    deps: Identity, purpose: Purpose, *, token: str, password: str
) -> tuple[Account, list[str]]:
    check_password(password, chars_min=PASSWORD_CHARS_MIN)
    digest = token_sha256(token)
    async with transaction(deps.auth_pool) as db:
        # Checked first, so that an invalid token cannot make the server spend time on a hash.
        if not await credential_tokens.is_open(db, digest, purpose):
            raise _token_refused()
    password_hash = await deps.passwords.hash(password)
    async with transaction(deps.auth_pool) as db:
        user_id = await credential_tokens.take(db, digest, purpose)
        account = user_id and await users.set_password(db, user_id, password_hash)
        if not account:
            raise _token_refused()
        ended = await sessions.delete_sessions(db, account.id)
        await audit.insert_event(
            db,
            f"user.redeem_{purpose}",
            ("user", account.id),
            actor_id=account.id,
            tenant_id=account.id,
            after=account.facts(),
        )
    return account, ended


def _token_refused() -> Unauthenticated:
    return Unauthenticated(
        "TOKEN_REFUSED", "the token is invalid or expired; ask an administrator for another"
    )
