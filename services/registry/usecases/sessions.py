"""Signing in and out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from services.kit.caller import Caller
from services.kit.errors import InvalidArgument, Unauthenticated
from services.kit.ids import new_token, token_sha256, uuid7
from services.kit.pg import Pool, transaction
from services.registry.domain.identity import User, check_password, email_from
from services.registry.gateways.passwords import Passwords
from services.registry.storage import identity

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A new session; the token is shown here once."""

    token: str
    expires_at: datetime
    user: User


async def sign_in(
    auth_pool: Pool, passwords: Passwords, *, email: str, password: str, lifetime: timedelta
) -> SignedIn:
    """Trade an address and a password for a token.

    An unknown address, a wrong password and a deactivated user get the same answer in the same
    time. Two hashes run at once; who comes when many wait gets `ResourceExhausted`.
    """
    check_password(password)
    try:
        address = email_from(email)
    except InvalidArgument:
        # No user has such an address; that it is none is still nobody's business.
        address = ""
    async with transaction(auth_pool) as db:
        user = await identity.get_user_by_email(db, address) if address else None
    # No connection is held while the hash is computed.
    right = await passwords.verify(user.password_hash if user else None, password)
    if user is None or not right or not user.is_active:
        raise Unauthenticated("SIGN_IN_REFUSED", "the email address or the password is wrong")
    token = new_token()
    outdated = user.password_hash is not None and passwords.is_outdated(user.password_hash)
    renewed = await passwords.hash(password) if outdated else None
    async with transaction(auth_pool) as db:
        session = await identity.insert_session(
            db, uuid7(), user.id, digest=token_sha256(token), lifetime=lifetime
        )
        if renewed is not None and user.password_hash is not None:
            await identity.update_password_hash(db, user.id, renewed, was=user.password_hash)
    log.info("signed_in", user_id=str(user.id))
    return SignedIn(token, session["expires_at"], user)


async def sign_out(auth_pool: Pool, caller: Caller) -> str | None:
    """End the caller's session; gives its digest, which caches should forget."""
    async with transaction(auth_pool) as db:
        digest = await identity.delete_session(db, caller.session_id, user_id=caller.user_id)
    log.info("signed_out", user_id=str(caller.user_id))
    return digest
