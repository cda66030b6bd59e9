"""Private package indexes of tenants: set, listed, deleted, and opened for builds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar
from uuid import UUID

from services.kit.audit import tell_change
from services.kit.caller import Caller, check_administers
from services.kit.errors import ResourceExhausted, invalid, no_such
from services.kit.idempotency import Replayed, RequestKey, do_once
from services.kit.ids import uuid7
from services.kit.pg import Db, Pool, as_caller
from services.kit.root_keys import CannotOpen, RootKeys
from services.kit.updates import check_etag
from services.kit.web_address import Refused, check_url
from services.runner.domain.package_indexes import INDEXES_MAX, OpenIndex
from services.runner.gateways.egress_proxy import allows
from services.runner.gateways.secret_box import unseal
from services.runner.storage import package_indexes as stored
from services.runner.storage import secrets
from services.runner.storage.package_indexes import PackageIndex, SealedIndex

T = TypeVar("T")


class IndexRefused(Exception):  # noqa: N818 - it says what happened
    """An index whose secret cannot be opened here, or whose address is not allowed any more."""


@dataclass(frozen=True, slots=True)
class PackageIndexes:
    """Dependencies of these use cases; `trusted` are hosts that may be private."""

    pool: Pool
    trusted: Sequence[str]


async def set_index(
    deps: PackageIndexes,
    caller: Caller,
    name: str,
    *,
    url: str,
    username: str,
    secret_name: str,
    etag: str = "",
    key: RequestKey[PackageIndex] | None = None,
) -> PackageIndex | Replayed:
    """Create or change an index; builds use it from now on."""
    _check(url, username=username, secret_name=secret_name, trusted=deps.trusted)

    async def write(db: Db) -> PackageIndex:
        await secrets.lock(db, caller.tenant_id)
        before = await stored.get(db, caller.tenant_id, name)
        check_etag("package index", before.etag if before else "", etag)
        secret_id = await _secret_id(db, caller, secret_name) if secret_name else None
        if before is None:
            if len(await stored.list_indexes(db, caller.tenant_id)) >= INDEXES_MAX:
                raise ResourceExhausted(
                    "TOO_MANY_INDEXES", f"a tenant has at most {INDEXES_MAX} indexes; delete one"
                )
            await stored.insert(
                db, uuid7(), name=name, url=url, username=username, secret_id=secret_id
            )
        else:
            await stored.update(db, before.id, url=url, username=username, secret_id=secret_id)
        tell_change(_told(before), {"name": name, "url": url, "secret_name": secret_name})
        return await _found(db, caller, name)

    return await _written(deps, caller, key, write)


async def list_indexes(deps: PackageIndexes, caller: Caller) -> Sequence[PackageIndex]:
    """List the indexes of the caller's tenant, by name."""
    async with as_caller(deps.pool, caller) as db:
        return await stored.list_indexes(db, caller.tenant_id)


async def delete_index(
    deps: PackageIndexes,
    caller: Caller,
    name: str,
    *,
    etag: str = "",
    key: RequestKey[PackageIndex] | None = None,
) -> PackageIndex | Replayed:
    """Delete an index."""

    async def write(db: Db) -> PackageIndex:
        await secrets.lock(db, caller.tenant_id)
        before = await _found(db, caller, name)
        check_etag("package index", before.etag, etag)
        await stored.delete(db, before.id)
        tell_change(_told(before), {})
        return before

    return await _written(deps, caller, key, write)


def opened(sealed: SealedIndex, keys: RootKeys | None, *, trusted: Sequence[str]) -> OpenIndex:
    """Return an index ready for use by a build; raises IndexRefused."""
    try:  # checked again: settings may have changed since it was set
        check_url(sealed.url, loopback=False, trusted=partial(allows, trusted))
    except Refused as refused:
        raise IndexRefused(f"the package index {sealed.name}: its address {refused}") from None
    if sealed.secret is None:
        return OpenIndex(sealed.name, sealed.url)
    if keys is None:
        raise IndexRefused(
            f"the package index {sealed.name} needs a secret, and this runner has no key for it"
        )
    secret = sealed.secret
    try:
        password = unseal(
            keys,
            secret.sealed,
            tenant_id=secret.tenant_id,
            secret_id=secret.secret_id,
            version=secret.version,
        )
    except CannotOpen as problem:
        raise IndexRefused(f"the secret of the package index {sealed.name}: {problem}") from None
    return OpenIndex(sealed.name, sealed.url, sealed.username, password)


def _check(url: str, *, username: str, secret_name: str, trusted: Sequence[str]) -> None:
    try:
        check_url(url, loopback=False, trusted=partial(allows, trusted))
    except Refused as refused:
        fault = (
            f"the address {refused}; a private host has to be in the deployment's "
            "QFLOW_PACKAGE_INDEX_HOSTS"
        )
        raise invalid("url", "INDEX_URL_REFUSED", fault) from None
    if bool(username) != bool(secret_name):
        fault = "a user name and a secret come together; set both or neither"
        raise invalid("username", "CREDENTIAL_INCOMPLETE", fault)


async def _written(
    deps: PackageIndexes,
    caller: Caller,
    key: RequestKey[T] | None,
    write: Callable[[Db], Awaitable[T]],
) -> T | Replayed:
    check_administers(caller)
    return await do_once(deps.pool, caller, key, write)


async def _secret_id(db: Db, caller: Caller, name: str) -> UUID:
    found = await secrets.get(db, caller.tenant_id, name)
    if found is None:
        fault = "there is no such secret; SetSecret makes it"
        raise no_such("secret_name", name, "SECRET_NOT_FOUND", fault, resource=("secret", name))
    return found.id


async def _found(db: Db, caller: Caller, name: str) -> PackageIndex:
    found = await stored.get(db, caller.tenant_id, name)
    if found is None:
        fault = "there is no such package index; ListPackageIndexes shows those there are"
        raise no_such("name", name, "INDEX_NOT_FOUND", fault, resource=("package_index", name))
    return found


def _told(index: PackageIndex | None) -> dict[str, str]:
    if index is None:
        return {}
    return {"name": index.name, "url": index.url, "secret_name": index.secret_name or ""}
