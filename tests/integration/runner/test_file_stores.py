"""What every place for files does: a folder, one whose files are sealed, a store that speaks S3."""

from __future__ import annotations

import hashlib
import os
import random
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.config import Config
from moto.server import ThreadedMotoServer

from services.kit.sealed_data import DataKeys
from services.runner.gateways import object_store
from services.runner.gateways.file_port import (
    FileBytes,
    FileCorruptError,
    FileTooLarge,
    UploadBusy,
    UploadIncomplete,
    WrongOffset,
)
from services.runner.gateways.file_store import FileStore
from services.runner.gateways.object_store import ObjectStore
from services.runner.gateways.sealed_files import SealedFileStore

MIB = 1024 * 1024
# Two parts and a bit of a third, whatever their size.
CONTENT = random.Random(1).randbytes(17 * MIB)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
TENANT = uuid.uuid4()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["folder", "sealed", "objects"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> FileBytes:
    if request.param == "folder":
        return FileStore(tmp_path / "files")
    if request.param == "sealed":
        keys = DataKeys()
        keys.learn({TENANT: b"1" * 32}, TENANT)
        return SealedFileStore(tmp_path / "files", keys, seals=True)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    bucket = f"files-{uuid.uuid4()}"
    made = ObjectStore(bucket, endpoint=request.getfixturevalue("endpoint"), region="us-east-1")
    made._client.create_bucket(Bucket=bucket)
    return made


def _key(file_id: uuid.UUID) -> str:
    return f"{TENANT}/{file_id}"


def _all(store: FileBytes, key: str, offset: int = 0, limit: int = 1 << 40) -> bytes:
    return b"".join(store.pieces(key, offset=offset, limit=limit, piece_bytes=100_000))


def test_bytes_are_given_as_they_were_written_in_any_range(store: FileBytes) -> None:
    file_id = uuid.uuid4()
    size, sha256 = store.write(tenant_id=TENANT, file_id=file_id, parts=[b"12", b"345"])
    assert (5, hashlib.sha256(b"12345").hexdigest()) == (size, sha256)
    key = _key(file_id)
    assert b"12345" == store.read(key, size_bytes=5, sha256=sha256)
    store.check(key, size_bytes=5, sha256=sha256)
    assert b"34" == _all(store, key, 2, 2)
    assert b"" == _all(store, key, 5)
    for wrong in ({"size_bytes": 4, "sha256": sha256}, {"size_bytes": 5, "sha256": "0" * 64}):
        with pytest.raises(FileCorruptError):
            store.check(key, **wrong)  # type: ignore[arg-type]
        with pytest.raises(FileCorruptError):
            store.read(key, **wrong)  # type: ignore[arg-type]
    store.remove(tenant_id=TENANT, file_id=file_id)
    store.remove(tenant_id=TENANT, file_id=file_id)
    with pytest.raises(FileCorruptError):
        store.read(key, size_bytes=5, sha256=sha256)


@pytest.mark.parametrize("remembers", [True, False])
def test_an_upload_goes_on_from_where_it_says_it_stands(
    store: FileBytes, *, remembers: bool
) -> None:
    """Also in another process, which has hashed nothing of it."""
    key = _key(uuid.uuid4())
    assert 0 == store.received(key)
    cut_at = 10 * MIB + 123
    writer = store.append(key, offset=0, size_bytes=len(CONTENT))
    for at in range(0, cut_at, MIB):
        writer.write(CONTENT[at : min(at + MIB, cut_at)])
    with pytest.raises(UploadBusy):
        store.append(key, offset=store.received(key), size_bytes=len(CONTENT))
    writer.close()
    received = store.received(key)
    assert 0 < received <= cut_at
    assert received == writer.received_bytes
    with pytest.raises(UploadIncomplete):
        store.finish(key, size_bytes=len(CONTENT), sha256="")
    with pytest.raises(WrongOffset) as wrong:
        store.append(key, offset=0, size_bytes=len(CONTENT))
    assert received == wrong.value.received_bytes
    if not remembers:
        store._digests._known.clear()  # type: ignore[attr-defined]
    writer = store.append(key, offset=received, size_bytes=len(CONTENT))
    for at in range(received, len(CONTENT), MIB):
        writer.write(CONTENT[at : at + MIB])
    writer.close()
    for _ in range(2):  # the row may not have been written
        assert SHA256 == store.finish(key, size_bytes=len(CONTENT), sha256=SHA256)
    assert CONTENT == _all(store, key)
    assert len(CONTENT) == store.received(key)
    with pytest.raises(WrongOffset):
        store.append(key, offset=0, size_bytes=len(CONTENT))


def test_what_is_not_what_its_digest_says_is_gone(store: FileBytes) -> None:
    """B68."""
    key = _key(uuid.uuid4())
    for _ in range(2):
        writer = store.append(key, offset=0, size_bytes=3)
        writer.write(b"123")
        writer.close()
        with pytest.raises(FileCorruptError):
            store.finish(key, size_bytes=3, sha256="0" * 64)
        assert 0 == store.received(key)


def test_an_empty_file_and_one_that_is_given_up(store: FileBytes) -> None:
    """B70."""
    empty, given_up = uuid.uuid4(), uuid.uuid4()
    assert hashlib.sha256().hexdigest() == store.finish(_key(empty), size_bytes=0, sha256="")
    assert b"" == _all(store, _key(empty))
    writer = store.append(_key(given_up), offset=0, size_bytes=9 * MIB)
    writer.write(CONTENT[: 9 * MIB])
    writer.close()
    assert 9 * MIB == store.received(_key(given_up))
    store.remove(tenant_id=TENANT, file_id=given_up)
    assert 0 == store.received(_key(given_up))


def test_a_file_is_lent_and_taken(store: FileBytes, tmp_path: Path) -> None:
    """F42: proven each time, and what is done to what was lent harms nobody."""
    file_id = uuid.uuid4()
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    descriptor = os.open(source, os.O_RDONLY)
    try:
        with pytest.raises(FileTooLarge):
            store.adopt(tenant_id=TENANT, file_id=file_id, descriptor=descriptor, bytes_max=MIB)
        taken = store.adopt(
            tenant_id=TENANT, file_id=file_id, descriptor=descriptor, bytes_max=1 << 30
        )
    finally:
        os.close(descriptor)
    assert (len(CONTENT), SHA256) == taken
    place = tmp_path / "place"
    for _ in range(2):
        store.lend(_key(file_id), place, size_bytes=len(CONTENT), sha256=SHA256)
        assert CONTENT == place.read_bytes()
        assert 0o444 == place.stat().st_mode & 0o777
        place.unlink()
    store.check(_key(file_id), size_bytes=len(CONTENT), sha256=SHA256)
    with pytest.raises(FileCorruptError):
        store.lend(_key(file_id), place, size_bytes=len(CONTENT), sha256="0" * 64)
    assert not place.exists()
    with pytest.raises(FileCorruptError):
        store.lend(_key(uuid.uuid4()), place, size_bytes=1, sha256=SHA256)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(FileCorruptError):
            store.adopt(tenant_id=TENANT, file_id=file_id, descriptor=folder, bytes_max=1)
    finally:
        os.close(folder)


@pytest.mark.parametrize("key", ["../x", "/etc/passwd", "a/b", "..", ""])
def test_a_key_is_two_uuids_or_nothing(store: FileBytes, key: str) -> None:
    """B63, B64, X24."""
    for act in (
        lambda: store.received(key),
        lambda: store.check(key, size_bytes=0, sha256=""),
        lambda: store.finish(key, size_bytes=0, sha256=""),
    ):
        with pytest.raises(ValueError, match="UUID"):
            act()


def test_a_store_that_does_not_answer_is_a_fault_and_no_missing_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    quick = object_store._CONFIG.merge(Config(retries={"mode": "standard", "max_attempts": 1}))
    monkeypatch.setattr(object_store, "_CONFIG", quick)
    away = ObjectStore("files", endpoint="http://127.0.0.1:9", region="us-east-1")
    with pytest.raises(OSError, match="object store"):
        away.received(_key(uuid.uuid4()))
