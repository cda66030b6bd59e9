"""Files that are sealed at rest are kept by backups as they are, and are seen to be whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from services.kit.sealed_data import DataKeys
from services.runner.gateways.sealed_files import SealedFileStore
from services.standalone.backup import bytes_of_files
from services.standalone.backup.at_home import sizes_of
from services.standalone.backup.sealed import CorruptError
from tests import factories
from tests.support.database import Database


def test_a_sealed_file_is_kept_proven_and_given_back_without_its_key(
    database: Database, tmp_path: Path
) -> None:
    keys = DataKeys()
    keys.learn({UUID(int=1): b"1" * 32}, UUID(int=1))
    files, pool = tmp_path / "files", tmp_path / "pool"
    store, data, file_id = SealedFileStore(files, keys, seals=True), os.urandom(200_000), uuid4()
    with database.connect() as sql:
        owner = factories.user(sql)
        size, sha256 = store.write(tenant_id=owner.id, file_id=file_id, parts=[data])
        key = f"{owner.id}/{file_id}"
        sql.execute(
            "INSERT INTO files (id, filename, original_filename, file_path, file_size_bytes,"
            " hash_sha256, tenant_id, created_by) VALUES (%s, 'a', 'a', %s, %s, %s, %s, %s)",
            (file_id, key, size, sha256, owner.id, owner.id),
        )
        copied, [kept] = bytes_of_files.keep_new(sql, source=files, pool=pool, key=None)
    assert 1 == copied
    bytes_of_files.check(kept, pool=pool, key=None)
    assert size in sizes_of(files / key)
    shutil.rmtree(files)
    bytes_of_files.give_back(kept, pool=pool, target=files, key=None)
    assert data == store.read(key, size_bytes=size, sha256=sha256)
    [stored] = [each for each in pool.rglob("*") if each.is_file()]
    stored.chmod(0o600)
    stored.write_bytes(stored.read_bytes()[:-100] + bytes(100))
    with pytest.raises(CorruptError):
        bytes_of_files.check(kept, pool=pool, key=None)
