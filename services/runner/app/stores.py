"""The runner's storage: the home's lock, files, wheels, secrets, and exchange folders."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog

from services.kit.at_rest import AtRest
from services.kit.home_lock import lock_home
from services.kit.pg import Pool
from services.kit.root_keys import LocalKeys
from services.runner.gateways.file_port import FileBytes
from services.runner.gateways.file_store import FileStore
from services.runner.gateways.wheel_store import WheelStore
from services.runner.settings import Settings
from services.runner.usecases.granted_secrets import GrantedSecrets
from services.runner.usecases.secrets import Secrets
from services.runner.usecases.wheels import WheelLimits, Wheels

log = structlog.get_logger()

_LOCK_WAIT_S: Final = 15.0
_LOCK_POLL_S: Final = 0.1


async def lock_runner(settings: Settings) -> int:
    """Lock this runner's name in its home; return the descriptor that holds the lock."""
    path = settings.home / "run" / f"{settings.name}.lock"
    return await lock_home(
        path,
        refusal=f"another runner holds {path}; stop it, or set QFLOW_RUNNER_NAME",
        wait_s=_LOCK_WAIT_S,
        poll_s=_LOCK_POLL_S,
    )


def file_store(settings: Settings, at_rest: AtRest) -> FileBytes:
    """Return the storage of files: a folder, sealed if data at rest is, or a bucket."""
    bucket = settings.bucket
    if bucket is None:
        folder = settings.home / "files"
        if at_rest.keys is None:
            return FileStore(folder)
        from services.runner.gateways.sealed_files import SealedFileStore  # late, as below

        return SealedFileStore(folder, at_rest.keys, seals=at_rest.seals)
    if at_rest.seals:
        log.warning("files_left_to_the_bucket", bucket=bucket.name)
    # Imported late: slow, and not needed by most deployments.
    from services.runner.gateways.object_store import ObjectStore

    return ObjectStore(bucket.name, endpoint=bucket.endpoint, region=bucket.region)


def exchanges(settings: Settings) -> Path:
    """Return the folder for file exchange with sandboxes, emptied of leftovers."""
    folder = settings.home / "exchange" / settings.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o711, parents=True)
    return folder


def wheels_of(settings: Settings, pool: Pool, store: WheelStore) -> Wheels:
    """Return the use cases of tenants' wheels, with their limits."""
    limits = WheelLimits(
        bytes_max=settings.packages.wheel_bytes_max,
        tenant_bytes_max=settings.packages.tenant_wheels_bytes_max,
    )
    return Wheels(pool, store, limits)


def secrets_of(env: Mapping[str, str], api_pool: Pool, engine_pool: Pool) -> Secrets:
    """Return the use cases of tenants' secrets, with this deployment's root keys."""
    keys = LocalKeys.from_env(env)
    return Secrets(api_pool, keys, GrantedSecrets(engine_pool, keys))
