"""Users: invite, read, update, deactivate, reactivate and anonymize."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import structlog

from services.kit.caller import Caller
from services.kit.errors import AlreadyExists, FieldViolation
from services.kit.idempotency import Replayed, RequestKey
from services.kit.ids import new_token, token_sha256, uuid7
from services.kit.pg import Db, as_caller
from services.kit.updates import check_etag, check_mask
from services.registry.domain import accounts
from services.registry.domain.accounts import Account
from services.registry.domain.identity import email_from
from services.registry.storage import credential_tokens, service_tokens, sessions, users
from services.registry.usecases.identity import (
    Identity,
    check_reaches,
    not_the_owner,
    note,
    write,
)

log = structlog.get_logger()

INVITATION: Final = timedelta(days=7)
INVITATION_PREFIX: Final = "qf_invite"
_NOBODY: Final = UUID(int=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """The fields of a user that a caller may set."""

    first_name: str = ""
    last_name: str = ""
    role: str = ""


@dataclass(frozen=True, slots=True)
class Invited:
    """A new user; the token is returned only here."""

    account: Account
    token: str
    expires_at: datetime


async def invite_user(
    deps: Identity,
    caller: Caller,
    draft: Draft,
    *,
    email: str,
    lifetime: timedelta = INVITATION,
    key: RequestKey[Invited] | None = None,
    validate_only: bool = False,
) -> Invited | Replayed:
    """Create a user without a password, and a token with which the user sets one."""
    address = email_from(email)
    _check_names(draft)
    token = new_token(INVITATION_PREFIX)

    async def change(db: Db) -> Invited:
        made = await users.insert_invited(
            db,
            uuid7(),
            address,
            first_name=draft.first_name,
            last_name=draft.last_name,
            role=draft.role,
        )
        if made is None:
            description = "is the address of a user already"
            raise AlreadyExists(
                "USER_EXISTS",
                f"email {description}",
                fields=[FieldViolation("email", description, "USER_EXISTS")],
            )
        expires_at = await credential_tokens.upsert_token(
            db,
            made.id,
            "invitation",
            digest=token_sha256(token),
            lifetime=lifetime,
            created_by=caller.user_id,
        )
        await note(db, caller, "user.invite", ("user", made.id), after=made.facts())
        return Invited(made, token, expires_at)

    answer = await write(deps, caller, key, change, validate_only=validate_only)
    if isinstance(answer, Replayed):
        return answer
    if validate_only:
        return Invited(replace(answer.account, id=_NOBODY), "", answer.expires_at)
    log.info("user_invited", user_id=str(answer.account.id), role=answer.account.role)
    return answer


async def get_user(deps: Identity, caller: Caller, user_id: UUID | None) -> Account:
    """Return the caller, or any user for an administrator."""
    whose = user_id or caller.user_id
    of_another = check_reaches(caller, whose, scope="users:read")
    async with as_caller(deps.auth_pool, caller) as db:
        found = await users.get_user(db, whose)
        if found is None:
            raise accounts.not_found(whose)
        if of_another:
            await note(db, caller, "user.read", ("user", whose))
    return found


async def list_users(
    deps: Identity, caller: Caller, *, after: tuple[datetime, UUID] | None, limit: int
) -> Sequence[Account]:
    """List all users, newest first; the contract limits this call to administrators."""
    async with as_caller(deps.auth_pool, caller) as db:
        await note(db, caller, "users.list", ("user", _NOBODY))
        return await users.list_users(db, after=after, limit=limit)


async def update_user(
    deps: Identity,
    caller: Caller,
    user_id: UUID,
    draft: Draft,
    *,
    mask: Sequence[str],
    allowed: Sequence[str] = accounts.USER_FIELDS,
    etag: str = "",
    key: RequestKey[Account] | None = None,
    validate_only: bool = False,
) -> Account | Replayed:
    """Change the fields in the mask; a changed role ends the user's sessions."""
    check_mask(mask, allowed)
    _check_names(draft)
    ended: list[str] = []

    async def change(db: Db) -> Account:
        before = await _locked(db, user_id, etag)
        accounts.check_not_anonymized(before)
        wanted = replace(
            before, first_name=draft.first_name, last_name=draft.last_name, role=draft.role
        )
        after = await users.update_user(db, accounts.merged(before, wanted, mask))
        if after.role != before.role:
            ended.extend(await sessions.delete_sessions(db, user_id))
        renamed = (before.first_name, before.last_name) != (after.first_name, after.last_name)
        await note(
            db,
            caller,
            "user.update",
            ("user", user_id),
            before=before.facts(),
            after=after.facts() | {"renamed": renamed},
        )
        return after

    answer = await write(deps, caller, key, change, validate_only=validate_only)
    if not validate_only:
        deps.forget_all(ended)
    return answer


async def transfer_ownership(
    deps: Identity, caller: Caller, user_id: UUID, *, key: RequestKey[Account] | None = None
) -> Account | Replayed:
    """Transfer ownership to another user; only the owner may, and there is always exactly one."""
    ended: list[str] = []

    async def change(db: Db) -> Account:
        before, owner = await users.lock_user_and_owner(db, user_id)
        if owner is None or owner.id != caller.user_id:
            raise not_the_owner()
        if before is None:
            raise accounts.not_found(user_id)
        if before.state != "active":
            raise accounts.not_active(before)
        if before.id == owner.id:
            return before
        await users.update_user(db, replace(owner, is_owner=False))
        after = await users.update_user(db, replace(before, is_owner=True, role="admin"))
        if after.role != before.role:
            ended.extend(await sessions.delete_sessions(db, user_id))
        await note(
            db,
            caller,
            "user.transfer_ownership",
            ("user", user_id),
            before=before.facts() | {"owner_id": str(owner.id)},
            after=after.facts() | {"owner_id": str(after.id)},
        )
        return after

    answer = await write(deps, caller, key, change)
    deps.forget_all(ended)
    log.info("ownership_transferred", user_id=str(user_id))
    return answer


async def deactivate_user(
    deps: Identity,
    caller: Caller,
    user_id: UUID,
    *,
    etag: str = "",
    key: RequestKey[Account] | None = None,
) -> Account | Replayed:
    """Deactivate a user: ends all sessions; service tokens are refused until reactivation."""
    ended: list[str] = []

    async def change(db: Db) -> Account:
        before = await _locked(db, user_id, etag)
        accounts.check_not_anonymized(before)
        if before.is_owner:
            raise accounts.is_owner(before)
        after = await users.update_user(db, before, is_active=False)
        await credential_tokens.delete_token(db, user_id)
        ended.extend(await sessions.delete_sessions(db, user_id))
        await note(
            db,
            caller,
            "user.deactivate",
            ("user", user_id),
            before=before.facts(),
            after=after.facts(),
        )
        return after

    answer = await write(deps, caller, key, change)
    deps.forget_all(ended)
    return answer


async def reactivate_user(
    deps: Identity,
    caller: Caller,
    user_id: UUID,
    *,
    etag: str = "",
    key: RequestKey[Account] | None = None,
) -> Account | Replayed:
    """Reactivate a user; one without a password needs a reset token to set one."""

    async def change(db: Db) -> Account:
        before = await _locked(db, user_id, etag)
        accounts.check_not_anonymized(before)
        after = await users.update_user(db, before, is_active=True)
        await note(
            db,
            caller,
            "user.reactivate",
            ("user", user_id),
            before=before.facts(),
            after=after.facts(),
        )
        return after

    return await write(deps, caller, key, change)


async def anonymize_user(
    deps: Identity,
    caller: Caller,
    user_id: UUID,
    *,
    etag: str = "",
    key: RequestKey[Account] | None = None,
) -> Account | Replayed:
    """Erase a user's personal data irrevocably; what the user made keeps the author's id."""
    ended: list[str] = []

    async def change(db: Db) -> Account:
        before = await _locked(db, user_id, etag)
        if before.is_owner:
            raise accounts.is_owner(before)
        if before.state == "anonymized":
            return before
        after = await users.anonymize_user(db, user_id, accounts.anonymous_email(user_id))
        await credential_tokens.delete_token(db, user_id)
        ended.extend(await sessions.delete_sessions(db, user_id))
        ended.extend(await service_tokens.delete_tokens(db, user_id))
        await note(
            db,
            caller,
            "user.anonymize",
            ("user", user_id),
            before=before.facts(),
            after=after.facts(),
        )
        return after

    answer = await write(deps, caller, key, change)
    deps.forget_all(ended)
    return answer


async def _locked(db: Db, user_id: UUID, etag: str) -> Account:
    found = await users.lock_user(db, user_id)
    if found is None:
        raise accounts.not_found(user_id)
    check_etag("user", found.etag, etag)
    return found


def _check_names(draft: Draft) -> None:
    accounts.personal_name_from(draft.first_name, field="first_name")
    accounts.personal_name_from(draft.last_name, field="last_name")
