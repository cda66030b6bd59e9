"""Inputs stored in files: fields, elements of lists, and values spliced from several."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

import msgspec

from services.kit.pg import Pool
from services.runner.domain.attempts import FileReference, Spliced
from services.runner.domain.limits import MIB
from services.runner.domain.lists import split
from services.runner.gateways.file_port import FileBytes, FileCorruptError
from services.runner.storage import files
from services.runner.usecases.patience import patiently

# For split lists whose elements are read one by one; the latest is kept whatever its size.
_CACHE_BYTES_MAX: Final = 64 * MIB
_ELEMENT_BYTES: Final = 64  # the memory of each element of a split list besides its text
_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])

# Tenant, file, expected hash, and field.
_Key: TypeAlias = tuple[UUID, UUID, str, str]


class InputTooLarge(Exception):  # noqa: N818 - it says what is wrong with the input
    """An input exceeds the memory that is left for it."""


class _List(NamedTuple):
    elements: Sequence[msgspec.Raw]
    cost_bytes: int


class StoredInputs:
    """Reads inputs from files; a list is read and split once for all its elements."""

    def __init__(
        self, store: FileBytes, database: Pool, *, cache_bytes_max: int = _CACHE_BYTES_MAX
    ) -> None:
        self._store = store
        self._database = database
        self._cache_bytes_max = cache_bytes_max
        self._cache_bytes = 0
        self._lists: OrderedDict[_Key, _List] = OrderedDict()
        self._reading: dict[_Key, asyncio.Task[_List]] = {}

    async def text(
        self, value: FileReference | Spliced, tenant_id: UUID, *, bytes_max: int
    ) -> bytes:
        """Return an input's exact text; raises FileCorruptError or InputTooLarge."""
        if isinstance(value, FileReference) and value.index is not None:
            text = await self._element(value, value.index, tenant_id)
            if len(text) > bytes_max:
                raise InputTooLarge
            return text
        pieces = value.pieces if isinstance(value, Spliced) else (value,)
        keys = await self._keys(
            [piece for piece in pieces if isinstance(piece, FileReference)], tenant_id
        )
        return await asyncio.to_thread(self._join, pieces, keys, bytes_max)

    async def _keys(self, wanted: Sequence[FileReference], tenant_id: UUID) -> Mapping[UUID, str]:
        """Return the storage keys of files that belong to the tenant and have these hashes."""
        ids = list({each.file_id for each in wanted})
        found = {
            row.id: row
            for row in await patiently(lambda: files.of_tenant(self._database, ids, tenant_id))
        }
        for each in wanted:
            if each.file_id not in found or found[each.file_id].sha256 != each.sha256:
                raise FileCorruptError("the file is not known")
        return {file_id: row.key for file_id, row in found.items()}

    def _join(
        self, pieces: Sequence[bytes | FileReference], keys: Mapping[UUID, str], bytes_max: int
    ) -> bytes:
        texts = []
        left = bytes_max
        for piece in pieces:
            text = piece if isinstance(piece, bytes) else self._field(keys[piece.file_id], piece)
            left -= len(text)
            if left < 0:
                raise InputTooLarge
            texts.append(text)
        return b"".join(texts)

    def _field(self, key: str, reference: FileReference) -> bytes:
        data = self._store.read(key, size_bytes=reference.size_bytes, sha256=reference.sha256)
        if not reference.field:
            return data
        try:
            return bytes(_FIELDS.decode(data)[reference.field])
        except (msgspec.DecodeError, KeyError):
            raise FileCorruptError(f"the file has no field {reference.field!r}") from None

    # -- elements

    async def _element(self, reference: FileReference, index: int, tenant_id: UUID) -> bytes:
        key = (tenant_id, reference.file_id, reference.sha256, reference.field)
        found = self._lists.get(key)
        if found is None:
            found = await self._read(key, reference)
        else:
            self._lists.move_to_end(key)
        try:
            return bytes(found.elements[index])
        except IndexError:
            raise FileCorruptError(f"{reference.field!r} has no element {index}") from None

    async def _read(self, key: _Key, reference: FileReference) -> _List:
        """Read a list once for all attempts that wait for it; any of them may be cancelled."""
        reading = self._reading.get(key)
        if reading is None:
            reading = self._reading[key] = asyncio.create_task(self._split(key, reference))
            reading.add_done_callback(lambda done: self._keep(key, done))
        return await asyncio.shield(reading)

    async def _split(self, key: _Key, reference: FileReference) -> _List:
        paths = await self._keys([reference], key[0])
        return await asyncio.to_thread(self._split_field, paths[reference.file_id], reference)

    def _split_field(self, path: str, reference: FileReference) -> _List:
        text = self._field(path, reference)
        try:
            elements = split(text)
        except ValueError:
            raise FileCorruptError(f"{reference.field!r} is not a list") from None
        return _List(elements, len(text) + _ELEMENT_BYTES * len(elements))

    def _keep(self, key: _Key, done: asyncio.Task[_List]) -> None:
        del self._reading[key]
        if done.cancelled() or done.exception() is not None:
            return  # the waiting attempts get the error
        self._lists[key] = done.result()
        self._cache_bytes += done.result().cost_bytes
        while self._cache_bytes > self._cache_bytes_max and len(self._lists) > 1:
            _, forgotten = self._lists.popitem(last=False)
            self._cache_bytes -= forgotten.cost_bytes
