"""Files sealed at rest: the same bytes come out, whole and in ranges, and no change goes unseen."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.kit.sealed_data import DataKeys
from services.kit.sealed_form import MARK, Passing
from services.runner.gateways.file_port import FileCorruptError
from services.runner.gateways.file_store import FileStore
from services.runner.gateways.sealed_files import SealedFileStore

_PIECE = 64 * 1024
_SIZES = [0, 1, _PIECE - 1, _PIECE, _PIECE + 1, 3 * _PIECE, 3 * _PIECE + 77]


@pytest.fixture
def keys() -> DataKeys:
    made = DataKeys()
    made.learn({UUID(int=1): b"1" * 32}, UUID(int=1))
    return made


@pytest.fixture
def store(tmp_path: Path, keys: DataKeys) -> SealedFileStore:
    return SealedFileStore(tmp_path / "files", keys, seals=True)


def written(store: FileStore, data: bytes, tenant: UUID | None = None) -> tuple[str, str]:
    tenant, file = tenant or uuid4(), uuid4()
    size, sha256 = store.write(tenant_id=tenant, file_id=file, parts=[data[:7], data[7:]])
    assert (len(data), hashlib.sha256(data).hexdigest()) == (size, sha256)
    return f"{tenant}/{file}", sha256


@pytest.mark.parametrize("size", _SIZES)
def test_a_file_comes_out_as_it_went_in(store: SealedFileStore, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    key, sha256 = written(store, data)
    stored = (tmp_path / "files" / key).read_bytes()
    assert size < 32 or data[:32] not in stored
    assert data == store.read(key, size_bytes=size, sha256=sha256)
    store.check(key, size_bytes=size, sha256=sha256)
    assert size == store.received(key)
    for offset, limit in ((0, size), (size // 2, size), (_PIECE, 10), (size, 5), (1, _PIECE)):
        found = b"".join(store.pieces(key, offset=offset, limit=limit, piece_bytes=1000))
        assert data[offset : offset + limit] == found
    place = tmp_path / "lent"
    store.lend(key, place, size_bytes=size, sha256=sha256)
    store.lend(key, place, size_bytes=size, sha256=sha256)
    assert data == place.read_bytes()
    assert 0o444 == place.stat().st_mode & 0o777


_CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "a byte": lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
    "cut off": lambda data: data[: 56 + _PIECE + 16] + data[-32:],
    "a byte of the digest's": lambda data: data[:-1],
    "cut in the head": lambda data: data[:20],
    "pieces left out": lambda data: data[:56] + data[56 + _PIECE + 16 :],
    "no pieces": lambda data: data[:56] + data[-32:],
}


@pytest.mark.parametrize("what", _CHANGES)
def test_a_changed_file_is_never_given(store: SealedFileStore, tmp_path: Path, what: str) -> None:
    data = os.urandom(3 * _PIECE)
    key, sha256 = written(store, data)
    path = tmp_path / "files" / key
    path.chmod(0o600)
    path.write_bytes(_CHANGES[what](path.read_bytes()))
    with pytest.raises(FileCorruptError):
        store.read(key, size_bytes=len(data), sha256=sha256)
    with pytest.raises(FileCorruptError):
        store.lend(key, tmp_path / "lent", size_bytes=len(data), sha256=sha256)
    assert not (tmp_path / "lent").exists()


def test_no_file_stands_in_anothers_place(store: SealedFileStore, tmp_path: Path) -> None:
    (mine, sha256), (other, _) = written(store, b"mine"), written(store, b"othr")
    (tmp_path / "files" / other).replace(tmp_path / "files" / mine)
    with pytest.raises(FileCorruptError):
        store.read(mine, size_bytes=4, sha256=sha256)


def test_an_upload_is_sealed_once_it_is_complete(store: SealedFileStore, tmp_path: Path) -> None:
    data = os.urandom(100_000)
    key, sha256 = f"{uuid4()}/{uuid4()}", hashlib.sha256(data).hexdigest()
    for offset in (0, 60_000):
        writer = store.append(key, offset=offset, size_bytes=len(data))
        writer.write(data[offset : offset + 60_000])
        writer.close()
    assert sha256 == store.finish(key, size_bytes=len(data), sha256=sha256)
    assert data[:32] not in (tmp_path / "files" / key).read_bytes()
    assert sha256 == store.finish(key, size_bytes=len(data), sha256=sha256)
    with pytest.raises(FileCorruptError):
        store.finish(key, size_bytes=len(data), sha256="0" * 64)
    assert data == store.read(key, size_bytes=len(data), sha256=sha256)
    assert len(data) == store.received(key)


def test_what_was_stored_in_clear_is_read_as_ever_and_nothing_is_sealed_without_the_switch(
    tmp_path: Path, keys: DataKeys
) -> None:
    before = FileStore(tmp_path / "files")
    key, sha256 = written(before, b"in clear")
    for seals in (True, False):
        store = SealedFileStore(tmp_path / "files", keys, seals=seals)
        assert b"in clear" == store.read(key, size_bytes=8, sha256=sha256)
        store.lend(key, tmp_path / f"lent-{seals}", size_bytes=8, sha256=sha256)
    key, _ = written(store, b"in clear")
    assert b"in clear" == (tmp_path / "files" / key).read_bytes()


def test_without_a_key_nothing_is_stored(tmp_path: Path) -> None:
    store = SealedFileStore(tmp_path / "files", DataKeys(), seals=True)
    with pytest.raises(OSError, match="not loaded"):
        written(store, b"x")
    assert [] == [each for each in (tmp_path / "files").rglob("*") if each.is_file()]


@pytest.mark.parametrize("size", _SIZES)
def test_who_keeps_a_sealed_file_without_keys_sees_that_it_is_whole(
    store: SealedFileStore, tmp_path: Path, size: int
) -> None:
    """As backups do: damage anywhere shows, and so does another file's size."""
    key, sha256 = written(store, os.urandom(size))
    stored = (tmp_path / "files" / key).read_bytes()

    def proven(data: bytes, **row: Any) -> bool:
        passing = Passing()
        for at in range(0, len(data), 1000):
            passing.feed(data[at : at + 1000])
        return passing.proves(**{"size_bytes": size, "sha256": sha256, **row})

    assert proven(stored)
    assert not proven(stored, size_bytes=size + 1)
    assert not proven(stored[:-1])
    for at in (0, 30, len(stored) // 2, len(stored) - 1):
        assert not proven(stored[:at] + bytes([stored[at] ^ 1]) + stored[at + 1 :])


def test_a_clear_file_that_begins_like_a_sealed_one_is_what_it_is(
    tmp_path: Path, keys: DataKeys
) -> None:
    """Nobody spoils a backup or a store by what they upload."""
    data = MARK + bytes(200)
    key, sha256 = written(FileStore(tmp_path / "files"), data)
    store = SealedFileStore(tmp_path / "files", keys, seals=True)
    assert data == store.read(key, size_bytes=len(data), sha256=sha256)
    store.check(key, size_bytes=len(data), sha256=sha256)
    passing = Passing()
    passing.feed(data)
    assert passing.proves(size_bytes=len(data), sha256=sha256)
