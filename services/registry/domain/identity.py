"""Users: rules for email addresses, passwords and roles."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from services.kit.errors import FieldViolation, InvalidArgument

EMAIL_CHARS_MAX: Final = 255
PASSWORD_BYTES_MAX: Final = 1024
PASSWORD_CHARS_MIN: Final = 8
ROLES: Final = ("viewer", "user", "admin")
# Only what every address has: a local part, one @, a domain, and no blanks.
_EMAIL: Final = re.compile(r"[^\s@\"(),:;<>\[\]\\]{1,64}@[^\s@\"(),:;<>\[\]\\]{1,190}")


@dataclass(frozen=True, slots=True)
class User:
    """A user with what signing in needs."""

    id: UUID
    email: str
    role: str
    is_owner: bool
    is_active: bool
    password_hash: str | None


def email_from(text: str) -> str:
    """Return an address in its stored form: NFC, in lower case."""
    email = unicodedata.normalize("NFC", text).lower()
    printable = email.isprintable() and len(email) <= EMAIL_CHARS_MAX
    if not printable or not _EMAIL.fullmatch(email):
        raise _invalid("EMAIL_INVALID", "email", "must be an email address")
    return email


def check_password(password: str, *, field: str = "password", chars_min: int = 1) -> None:
    """Raise for an invalid password, before any time is spent on hashing it."""
    if len(password) < chars_min:
        raise _invalid("PASSWORD_INVALID", field, f"must have at least {chars_min} characters")
    if len(password.encode()) > PASSWORD_BYTES_MAX or "\0" in password:
        raise _invalid(
            "PASSWORD_INVALID", field, f"must have at most {PASSWORD_BYTES_MAX} bytes and no NUL"
        )


def role_from(text: str) -> str:
    """Return a valid role of a user; `service` is not one."""
    if text not in ROLES:
        raise _invalid("ROLE_INVALID", "role", f"must be one of {', '.join(ROLES)}")
    return text


def _invalid(reason: str, field: str, description: str) -> InvalidArgument:
    return InvalidArgument(
        reason, f"{field} {description}", fields=[FieldViolation(field, description, reason)]
    )
