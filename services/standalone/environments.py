"""The environment of each child process: only its own secrets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from services.kit import env as read
from services.standalone.home import Home

_BACKUP_LOGIN: Final = "qflow_backup"
_SECRETS_KEYS: Final = ("QFLOW_SECRETS_KEY_FILE", "QFLOW_SECRETS_KEYS")
_DATA_KEYS: Final = ("QFLOW_DATA_KEY_FILE", "QFLOW_DATA_KEYS")
_FOR_ONE: Final = frozenset({"QFLOW_SERVICE_TOKEN", *_SECRETS_KEYS, *_DATA_KEYS})


def common(env: Mapping[str, str], home: Home) -> dict[str, str]:
    """Return our environment without the secrets meant for one process only."""
    return {
        name: value
        for name, value in env.items()
        if name not in _FOR_ONE and not (name.startswith("QFLOW_") and name.endswith("_URL"))
    } | {
        "QFLOW_HOME": str(home.root),
        "QFLOW_STANDALONE": "1",
        # Otherwise glibc creates an arena per thread; these processes have few threads.
        "MALLOC_ARENA_MAX": env.get("MALLOC_ARENA_MAX", "2"),
    }


def of_service(
    name: str,
    env: Mapping[str, str],
    home: Home,
    prepared: Mapping[str, Any],
    redis_url: str | None,
) -> dict[str, str]:
    """Return a service's environment, without addresses; `prepared` holds the logins and tokens."""
    return {
        **common(env, home),
        # Only its own logins: neither another service's nor the migrating owner's.
        **{
            f"{login.upper()}_DATABASE_URL": url
            for login, url in prepared["urls"].items()
            if f"{login}_".startswith(f"qflow_{name}_")
            or (login == _BACKUP_LOGIN and name == "telemetry")
        },
        "QFLOW_SERVICE_TOKEN": prepared["tokens"][name],
        **(_secrets_key(env, home) if name == "runner" else {}),
        **(_data_key(env, home) if name in {"runner", "orchestrator"} else {}),
        **({"QFLOW_REDIS_URL": redis_url} if redis_url else {}),
    }


def _secrets_key(env: Mapping[str, str], home: Home) -> dict[str, str]:
    """Return the root key of secrets, for the runner only: from our environment or our file."""
    told = {name: env[name] for name in _SECRETS_KEYS if env.get(name)}
    return told or {"QFLOW_SECRETS_KEY_FILE": str(home.secrets_key())}


def _data_key(env: Mapping[str, str], home: Home) -> dict[str, str]:
    """Return the key of data at rest: from our environment, or our own file; empty without one."""
    told = {name: env[name] for name in _DATA_KEYS if env.get(name)}
    own = home.data_key(make=not told and read.flag(env, "QFLOW_ENCRYPT_DATA"))
    return told or ({} if own is None else {"QFLOW_DATA_KEY_FILE": str(own)})
