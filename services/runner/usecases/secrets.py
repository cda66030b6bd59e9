"""Secrets: set, switched between versions, deleted, and granted to nodes, which alone read them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from services.kit.audit import tell_change
from services.kit.caller import Caller, check_administers
from services.kit.errors import FailedPrecondition, NotFound, ResourceExhausted, no_such
from services.kit.idempotency import Replayed, RequestKey, do_once
from services.kit.ids import uuid7
from services.kit.pg import Db, Pool, as_caller
from services.kit.root_keys import RootKeys
from services.kit.updates import check_etag
from services.runner.domain.secrets import GRANTED_MAX, SECRETS_MAX, VERSIONS_KEPT
from services.runner.gateways.secret_box import seal
from services.runner.storage import package_indexes
from services.runner.storage import secrets as stored
from services.runner.storage.secrets import Grant, Secret, SecretVersion
from services.runner.usecases.granted_secrets import GrantedSecrets

T = TypeVar("T")
After = tuple[datetime, UUID] | None


@dataclass(frozen=True, slots=True)
class Secrets:
    """Dependencies of these use cases; without root keys no secret can be set."""

    pool: Pool
    keys: RootKeys | None
    granted: GrantedSecrets


async def set_secret(
    deps: Secrets,
    caller: Caller,
    name: str,
    value: str,
    *,
    description: str,
    etag: str = "",
    key: RequestKey[Secret] | None = None,
) -> Secret | Replayed:
    """Create a secret, or a new version of it, which nodes get from now on."""
    keys = _keys(deps)

    async def write(db: Db) -> Secret:
        await stored.lock(db, caller.tenant_id)
        before = await stored.get(db, caller.tenant_id, name)
        check_etag("secret", before.etag if before else "", etag)
        if before is None:
            if await stored.count(db, caller.tenant_id) >= SECRETS_MAX:
                raise ResourceExhausted(
                    "TOO_MANY_SECRETS", f"a tenant has at most {SECRETS_MAX:,} secrets; delete one"
                )
            secret_id, version = uuid7(), 1
            await stored.insert(db, secret_id, name, description)
        else:
            secret_id, version = before.id, before.last_version + 1
            await stored.update(
                db,
                secret_id,
                description=description or before.description,
                current_version=version,
                last_version=version,
            )
        sealed = seal(keys, value, tenant_id=caller.tenant_id, secret_id=secret_id, version=version)
        await stored.insert_version(db, secret_id, version, sealed)
        await stored.delete_versions(db, secret_id, up_to=version - VERSIONS_KEPT, but=version)
        tell_change(
            {"version": before.current_version} if before else {},
            {"name": name, "version": version, "key_id": sealed.key_id},
        )
        return await _found(db, caller, name)

    return await _written(deps, caller, key, write)


async def use_version(
    deps: Secrets,
    caller: Caller,
    name: str,
    version: int,
    *,
    etag: str = "",
    key: RequestKey[Secret] | None = None,
) -> Secret | Replayed:
    """Make nodes get another stored version."""

    async def write(db: Db) -> Secret:
        await stored.lock(db, caller.tenant_id)
        before = await _found(db, caller, name)
        check_etag("secret", before.etag, etag)
        kept = await stored.list_versions(db, before.id)
        if version not in {each.version for each in kept}:
            raise NotFound(
                "SECRET_VERSION_NOT_FOUND",
                f"no version {version} of the secret exists; GetSecret shows those that do",
                resource=("secret", name),
            )
        await stored.update(
            db,
            before.id,
            description=before.description,
            current_version=version,
            last_version=before.last_version,
        )
        tell_change({"version": before.current_version}, {"name": name, "version": version})
        return await _found(db, caller, name)

    return await _written(deps, caller, key, write)


async def get_secret(
    deps: Secrets, caller: Caller, name: str
) -> tuple[Secret, Sequence[SecretVersion]]:
    """Return a secret and its stored versions, without their values."""
    async with as_caller(deps.pool, caller) as db:
        found = await _found(db, caller, name)
        return found, await stored.list_versions(db, found.id)


async def list_secrets(
    deps: Secrets, caller: Caller, *, after: After, limit: int
) -> Sequence[Secret]:
    """Return a page of the secrets of the caller's tenant."""
    async with as_caller(deps.pool, caller) as db:
        return await stored.list_secrets(db, caller.tenant_id, after=after, limit=limit)


async def delete_secret(
    deps: Secrets,
    caller: Caller,
    name: str,
    *,
    etag: str = "",
    key: RequestKey[Secret] | None = None,
) -> Secret | Replayed:
    """Delete a secret with all its versions and grants."""

    async def write(db: Db) -> Secret:
        await stored.lock(db, caller.tenant_id)
        before = await _found(db, caller, name)
        check_etag("secret", before.etag, etag)
        if (index := await package_indexes.that_asks_for(db, before.id)) is not None:
            raise FailedPrecondition(
                "SECRET_IN_USE",
                f"the package index {index} uses it; change or delete the index first",
                resource=("secret", name),
            )
        await stored.delete(db, before.id)
        tell_change({"name": name, "version": before.current_version}, {})
        return before

    return await _written(deps, caller, key, write)


async def grant(
    deps: Secrets, caller: Caller, name: str, node_id: UUID, *, key: RequestKey[None] | None = None
) -> Replayed | None:
    """Grant a secret to a node of the tenant, in all its versions, including future ones."""

    async def write(db: Db) -> None:
        await stored.lock(db, caller.tenant_id)
        # The node is checked first: about another tenant's node nothing may be revealed but
        # NOT_FOUND.
        if not await stored.has_node(db, node_id, caller.tenant_id):
            raise _no_node(node_id)
        found = await _found(db, caller, name)
        if await stored.count_grants(db, node_id, caller.tenant_id) >= GRANTED_MAX:
            raise ResourceExhausted(
                "TOO_MANY_GRANTS", f"a node gets at most {GRANTED_MAX} secrets; revoke one"
            )
        await stored.insert_grant(db, found.id, node_id)
        tell_change({}, {"name": name, "node_id": str(node_id)})

    return await _written(deps, caller, key, write)


async def revoke(
    deps: Secrets, caller: Caller, name: str, node_id: UUID, *, key: RequestKey[None] | None = None
) -> Replayed | None:
    """Revoke a node's grant; running calls keep what they have."""

    async def write(db: Db) -> None:
        if not await stored.has_node(db, node_id, caller.tenant_id):
            raise _no_node(node_id)
        found = await _found(db, caller, name)
        if not await stored.delete_grant(db, found.id, node_id):
            raise NotFound(
                "GRANT_NOT_FOUND", "the node has no such grant", resource=("node", str(node_id))
            )
        tell_change({"name": name, "node_id": str(node_id)}, {})

    return await _written(deps, caller, key, write)


async def list_grants(
    deps: Secrets, caller: Caller, name: str, *, after: After, limit: int
) -> Sequence[Grant]:
    """Return a page of the nodes that are granted a secret."""
    async with as_caller(deps.pool, caller) as db:
        found = await _found(db, caller, name)
        return await stored.list_grants(db, found.id, after=after, limit=limit)


async def _written(
    deps: Secrets,
    caller: Caller,
    key: RequestKey[T] | None,
    write: Callable[[Db], Awaitable[T]],
) -> T | Replayed:
    check_administers(caller)

    async def write_and_tell(db: Db) -> T:
        made = await write(db)
        await stored.tell(db)
        return made

    written = await do_once(deps.pool, caller, key, write_and_tell)
    deps.granted.forget(caller.tenant_id)
    return written


def _keys(deps: Secrets) -> RootKeys:
    if deps.keys is None:
        raise FailedPrecondition(
            "SECRETS_NOT_CONFIGURED",
            "this deployment has no key to encrypt secrets with: set QFLOW_SECRETS_KEY_FILE",
        )
    return deps.keys


async def _found(db: Db, caller: Caller, name: str) -> Secret:
    found = await stored.get(db, caller.tenant_id, name)
    if found is None:
        fault = "there is no such secret; ListSecrets shows those there are"
        raise no_such("name", name, "SECRET_NOT_FOUND", fault, resource=("secret", name))
    return found


def _no_node(node_id: UUID) -> NotFound:
    return NotFound("NODE_NOT_FOUND", "there is no such node", resource=("node", str(node_id)))
