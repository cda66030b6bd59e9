"""Service tokens: backends act as their user, limited to the token's scopes."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

import structlog

from services.kit.caller import Caller
from services.kit.errors import (
    AlreadyExists,
    FieldViolation,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from services.kit.idempotency import Replayed, RequestKey
from services.kit.ids import new_token, token_sha256, uuid7
from services.kit.pg import Db, as_caller
from services.registry.domain import accounts
from services.registry.domain.texts import name_from
from services.registry.storage import service_tokens as storage
from services.registry.storage import users
from services.registry.storage.service_tokens import ServiceToken
from services.registry.usecases.identity import (
    Identity,
    check_reaches,
    is_administrator,
    note,
    write,
)

log = structlog.get_logger()

LIFETIME: Final = timedelta(days=90)
TOKENS_MAX: Final = 50
PREFIX: Final = "qf_service"
# Account operations need a session: a leaked token must not create other tokens, nor outlive the
# password under which it was made.
_SESSIONS_ALONE: Final = frozenset(
    {"account:read", "account:write", "sessions:write", "users:write", "teams:write"}
)


@dataclass(frozen=True, slots=True)
class Made:
    """A new token; its secret is returned only here."""

    known: ServiceToken
    token: str


async def create_token(
    deps: Identity,
    caller: Caller,
    *,
    name: str,
    scopes: Sequence[str],
    of_role: AbstractSet[str],
    lifetime: timedelta = LIFETIME,
    key: RequestKey[Made] | None = None,
    validate_only: bool = False,
) -> Made | Replayed:
    """Create a token for the caller; `of_role` holds the scopes that the caller's role may have."""
    name_from(name)
    _check_scopes(scopes, of_role - _SESSIONS_ALONE)
    token = new_token(PREFIX)

    async def change(db: Db) -> Made:
        held = await storage.count_held(db, caller.user_id)
        if held is None:
            raise accounts.not_found(caller.user_id)
        if held >= TOKENS_MAX:
            raise ResourceExhausted(
                "TOO_MANY_SERVICE_TOKENS",
                f"a user has at most {TOKENS_MAX} service tokens; revoke those that are not used",
            )
        made = await storage.insert_token(
            db,
            uuid7(),
            name,
            user_id=caller.user_id,
            tenant_id=caller.tenant_id,
            digest=token_sha256(token),
            scopes=sorted(scopes),
            lifetime=lifetime,
        )
        if made is None:
            description = "is the name of another of your service tokens"
            raise AlreadyExists(
                "SERVICE_TOKEN_EXISTS",
                f"name {description}",
                fields=[FieldViolation("name", description, "SERVICE_TOKEN_EXISTS")],
            )
        await note(
            db,
            caller,
            "service_token.create",
            ("service_token", made.id),
            after={"scopes": list(made.scopes)},
        )
        return Made(made, token)

    answer = await write(deps, caller, key, change, validate_only=validate_only)
    if isinstance(answer, Made) and validate_only:
        return Made(answer.known, "")
    return answer


async def list_tokens(
    deps: Identity, caller: Caller, user_id: UUID | None
) -> Sequence[ServiceToken]:
    """List the tokens of the caller, or of any user for an administrator."""
    whose = user_id or caller.user_id
    of_another = check_reaches(caller, whose, scope="users:read")
    async with as_caller(deps.auth_pool, caller) as db:
        if of_another:
            if await users.get_user(db, whose) is None:
                raise accounts.not_found(whose)
            await note(db, caller, "service_tokens.list", ("user", whose))
        return await storage.list_tokens(db, whose)


async def revoke_token(
    deps: Identity, caller: Caller, token_id: UUID, *, key: RequestKey[None] | None = None
) -> Replayed | None:
    """Revoke a token of the caller, or of any user for an administrator."""
    ended: list[str] = []

    async def change(db: Db) -> None:
        anybodys = is_administrator(caller, scope="users:write")
        found = await storage.delete_token(
            db, token_id, user_id=None if anybodys else caller.user_id
        )
        if found is None:
            raise NotFound(
                "SERVICE_TOKEN_NOT_FOUND",
                "there is no such service token",
                resource=("service_token", str(token_id)),
            )
        digest, user_id, scopes = found
        ended.append(digest)
        await note(
            db,
            caller,
            "service_token.revoke",
            ("service_token", token_id),
            before={"user_id": str(user_id), "scopes": scopes},
        )

    answer = await write(deps, caller, key, change)
    deps.forget_all(ended)
    return answer


def _check_scopes(scopes: Sequence[str], given: AbstractSet[str]) -> None:
    description = f"must be one of {', '.join(sorted(given))}"
    faults = [
        FieldViolation(f"scopes[{place}]", description, "SCOPE_REFUSED")
        for place, scope in enumerate(scopes)
        if scope not in given
    ]
    if faults or not scopes:
        raise InvalidArgument("SCOPE_REFUSED", f"each of scopes {description}", fields=faults)
