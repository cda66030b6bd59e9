"""Keys of backups: a signing key created in the home, and an encryption key from a file."""

from __future__ import annotations

import hashlib
import json
import secrets
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from services.standalone.backup.sealed import CorruptError, sync_folder
from services.standalone.home import Home, write_private
from services.standalone.process import StandaloneError

_SIGNING: Final = "backup-signing.key"
_KEY_BYTES: Final = 32


def signing_key(home: Home) -> Ed25519PrivateKey:
    """Return the home's signing key, creating it the first time; mode 0600, never in a backup."""
    path = home.secrets / _SIGNING
    try:
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text("ascii").strip()))
    except FileNotFoundError:
        home.make()
        raw = secrets.token_bytes(_KEY_BYTES)
        write_private(path, raw.hex() + "\n")
        return Ed25519PrivateKey.from_private_bytes(raw)


def public_hex(key: Ed25519PrivateKey) -> str:
    """Return a key's public part in hexadecimal, as its name."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def encryption_key(file: str | None) -> bytes | None:
    """Return the key in QFLOW_BACKUP_KEY_FILE, 64 hexadecimal digits; None if not set."""
    if not file:
        return None
    try:
        key = bytes.fromhex(Path(file).read_text("ascii").strip())
    except (OSError, ValueError) as error:
        raise StandaloneError(f"QFLOW_BACKUP_KEY_FILE: cannot read {file}: {error}") from error
    if len(key) != _KEY_BYTES:
        raise StandaloneError(
            f"QFLOW_BACKUP_KEY_FILE: {file} has to hold {_KEY_BYTES * 2} hexadecimal digits; "
            "`openssl rand -hex 32` makes some"
        )
    return key


def key_id(key: bytes | None) -> str:
    """Return a name for an encryption key that does not reveal it; empty without a key."""
    return "" if key is None else hashlib.sha256(b"qflow backup key\0" + key).hexdigest()[:16]


def write_signed(path: Path, facts: dict[str, Any], key: Ed25519PrivateKey) -> None:
    """Write facts as JSON with their signature, atomically."""
    text = json.dumps(facts, indent=1, sort_keys=True)
    signed = {
        "facts": text,
        "key": public_hex(key),
        "signature": key.sign(text.encode()).hex(),
    }
    write_private(path, json.dumps(signed, indent=1) + "\n")
    sync_folder(path.parent)


def read_signed(path: Path, home: Home) -> tuple[dict[str, Any], bool]:
    """Return signed facts, and whether this home's own key signed them.

    Raises CorruptError if the signature is invalid. A home that lost its key can still verify that
    nothing was damaged, but not who signed.
    """
    try:
        signed = json.loads(path.read_text("utf-8"))
        text: str = signed["facts"]
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signed["key"]))
        key.verify(bytes.fromhex(signed["signature"]), text.encode())
        facts: dict[str, Any] = json.loads(text)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{path.name} cannot be read: {error}") from error
    except InvalidSignature:
        raise CorruptError(f"{path.name} does not match its signature") from None
    ours = (home.secrets / _SIGNING).exists() and public_hex(signing_key(home)) == signed["key"]
    return facts, ours
