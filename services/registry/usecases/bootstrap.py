"""Create the first owner, the services' tokens, and users on behalf of the operator.

These run on the machine itself, under the identity login; they are not RPCs.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final
from uuid import UUID

import structlog

from services.kit.errors import AlreadyExists, FailedPrecondition
from services.kit.ids import new_token, token_sha256, uuid7
from services.kit.pg import Db, Pool, open_pool, transaction
from services.registry.domain.identity import (
    PASSWORD_CHARS_MIN,
    User,
    check_password,
    email_from,
    role_from,
)
from services.registry.gateways.passwords import Passwords
from services.registry.gateways.secret_files import read_secret, write_secret
from services.registry.storage import audit, identity
from services.registry.storage.users import SYSTEM_USER

log = structlog.get_logger()

OWNER_EMAIL: Final = "owner@localhost"
OWNER_PASSWORD_FILE: Final = "owner.password"  # noqa: S105  # a file's name
OWNER_TOKEN_FILE: Final = "owner.token"  # noqa: S105  # a file's name
_OWNER_SESSION: Final = timedelta(days=365)


async def bootstrap_owner(auth_database_url: str, home: Path, *, email: str = OWNER_EMAIL) -> Path:
    """Create the owner if there is none, and a new token for them; returns the token's file.

    `secrets/owner.password` is written only when the owner is created: a password changed later, or
    a file removed later, stays so. The token of the previous call ends.
    """
    async with _pool(auth_database_url) as pool:
        owner = await _ensure_owner(pool, home, email_from(email))
        before = read_secret(home, OWNER_TOKEN_FILE)
        token = new_token()
        async with transaction(pool) as db:
            await identity.insert_session(
                db, uuid7(), owner.id, digest=token_sha256(token), lifetime=_OWNER_SESSION
            )
        path = write_secret(home, OWNER_TOKEN_FILE, token)
        if before is not None:
            async with transaction(pool) as db:
                await identity.delete_session_by_digest(db, token_sha256(before))
    log.info("owner_token_made", user_id=str(owner.id))
    return path


async def service_token(
    auth_database_url: str, home: Path, *, name: str, scopes: Sequence[str]
) -> str:
    """Return the token in `secrets/<name>.token`, creating it the first time.

    A further call keeps the token and replaces its scopes.
    """
    token = read_secret(home, f"{name}.token")
    if token is None:
        # The file first: a file without a row is repaired by the next call; the token of a row
        # without a file would be lost.
        token = new_token()
        write_secret(home, f"{name}.token", token)
    async with _pool(auth_database_url) as pool, transaction(pool) as db:
        await identity.upsert_service_token(
            db, uuid7(), name, digest=token_sha256(token), scopes=scopes
        )
    return token


async def create_user(
    auth_database_url: str, *, email: str, password: str, role: str = "user"
) -> UUID:
    """Create a user who can sign in; returns the user's id, which is also the personal tenant's."""
    check_password(password, chars_min=PASSWORD_CHARS_MIN)
    user = User(
        id=uuid7(),
        email=email_from(email),
        role=role_from(role),
        is_owner=False,
        is_active=True,
        password_hash=await Passwords().hash(password),
    )
    async with _pool(auth_database_url) as pool, transaction(pool) as db:
        if not await identity.insert_user(db, user):
            raise AlreadyExists("USER_EXISTS", "there is a user with this email address")
        await _note(db, user)
    log.info("user_created", user_id=str(user.id), role=user.role)
    return user.id


async def _ensure_owner(pool: Pool, home: Path, email: str) -> User:
    async with transaction(pool) as db:
        owner = await identity.get_owner(db)
    if owner is not None:
        return owner
    # The file before the row: a crash between the two must not lose the password.
    password = read_secret(home, OWNER_PASSWORD_FILE) or secrets.token_urlsafe(18)
    write_secret(home, OWNER_PASSWORD_FILE, password)
    made = User(
        id=uuid7(),
        email=email,
        role="admin",
        is_owner=True,
        is_active=True,
        password_hash=await Passwords().hash(password),
    )
    async with transaction(pool) as db:
        if await identity.insert_user(db, made):
            await _note(db, made)
            log.info("owner_created", user_id=str(made.id))
            return made
        owner = await identity.get_owner(db)
    if owner is None:
        raise FailedPrecondition(
            "EMAIL_TAKEN", f"{email} belongs to a user who is not the owner; choose another address"
        )
    return owner


async def _note(db: Db, made: User) -> None:
    """Record in the audit trail a user created on the machine itself, where nobody is signed in."""
    await audit.insert_event(
        db,
        "user.create",
        ("user", made.id),
        actor_id=SYSTEM_USER,
        tenant_id=SYSTEM_USER,
        after={"role": made.role, "is_owner": made.is_owner, "state": "active"},
    )


@asynccontextmanager
async def _pool(url: str) -> AsyncIterator[Pool]:
    pool = await open_pool(
        url,
        application_name="qflow-registry-bootstrap",
        setting="QFLOW_REGISTRY_AUTH_DATABASE_URL",
        size_max=2,
    )
    try:
        yield pool
    finally:
        await pool.close()
