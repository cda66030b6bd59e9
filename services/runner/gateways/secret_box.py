"""Envelope encryption: each version of a secret has its own key, wrapped under a root key.

Everything sealed is bound to its tenant, secret and version, so that rows cannot be swapped.
"""

from __future__ import annotations

from uuid import UUID

from services.kit.root_keys import RootKeys, decrypt, encrypt, new_key
from services.runner.domain.secrets import Sealed


def seal(keys: RootKeys, value: str, *, tenant_id: UUID, secret_id: UUID, version: int) -> Sealed:
    """Encrypt a version under a new key of its own."""
    context = _context(tenant_id, secret_id, version)
    key = new_key()
    return Sealed(keys.current, keys.wrap(key, context), encrypt(key, value.encode(), context))


def unseal(
    keys: RootKeys, stored: Sealed, *, tenant_id: UUID, secret_id: UUID, version: int
) -> str:
    """Decrypt the value; raises CannotOpen."""
    context = _context(tenant_id, secret_id, version)
    key = keys.unwrap(stored.wrapped_key, stored.key_id, context)
    return decrypt(key, stored.sealed, context).decode()


def rewrap(
    keys: RootKeys, stored: Sealed, *, tenant_id: UUID, secret_id: UUID, version: int
) -> Sealed:
    """Wrap the key of a version under the current root key; the encrypted value does not change."""
    context = _context(tenant_id, secret_id, version)
    key = keys.unwrap(stored.wrapped_key, stored.key_id, context)
    return Sealed(keys.current, keys.wrap(key, context), stored.sealed)


def _context(tenant_id: UUID, secret_id: UUID, version: int) -> bytes:
    return f"qflow secret {tenant_id} {secret_id} {version}".encode()
