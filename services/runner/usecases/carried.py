"""Values in files: lent to a sandbox for a call, and collected from it afterwards."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import msgspec
import structlog

from services.kit.ids import uuid7
from services.kit.pg import FILE_QUOTA_REACHED, Pool, translate
from services.runner.domain.attempts import AttemptRequest
from services.runner.domain.carried import (
    FILES_MAX,
    FORMATS,
    PICKLE,
    Carries,
    pickle_refusal,
    references,
)
from services.runner.domain.limits import MIB, Tier
from services.runner.domain.outcome import AttemptError, ErrorType
from services.runner.gateways.file_port import FileBytes, FileCorruptError, FileTooLarge
from services.runner.gateways.sandbox.exchange import files_of, output_of
from services.runner.gateways.sandbox.port import Reply, Sandbox
from services.runner.storage import carried_files
from services.runner.storage.carried_files import CarriedFile
from services.runner.usecases.patience import patiently

log = structlog.get_logger()

_NAME_BYTES_MAX: Final = 200
_NOT_PLAIN: Final = re.compile(r"[\x00-\x1f\x7f/\\]")


class NotCarried(Exception):  # noqa: N818 - it carries an error that is an outcome
    """A file that cannot be given to a node, or taken from it, with the error of the outcome."""

    def __init__(self, kind: ErrorType, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.error = AttemptError(type=kind, message=message, retryable=retryable)


@dataclass(slots=True)
class Lent:
    """The files lent to one call, and the ids for files that it creates."""

    header: dict[str, Any]
    folders: list[Path] = field(default_factory=list)
    ids: Sequence[str] = ()
    output: Path | None = None
    size_bytes: int = 0  # of the files lent

    @property
    def descriptors_max(self) -> int:
        """How many files the call may create."""
        return len(self.ids)


class CarriedFiles:
    """Gives files to sandboxes, and stores those that they create."""

    def __init__(self, store: FileBytes, database: Pool) -> None:
        self._store = store
        self._database = database

    async def lend(
        self,
        request: AttemptRequest,
        sandbox: Sandbox,
        carries: Carries,
        inputs: Sequence[tuple[str, bytes]],
    ) -> Lent:
        """Put the files that inputs refer to where the sandbox can read them; raises NotCarried."""
        exchange = sandbox.spec.exchange
        if exchange is None:
            raise NotCarried(ErrorType.ENVIRONMENT, "this runner does not transfer files")
        lent = Lent({})
        ids = _referred(inputs, carries)
        try:
            if ids:
                await self._lend_all(request, sandbox, files_of(exchange), ids, lent)
        except BaseException:
            await self.give_back(lent)
            raise
        if carries.outputs:
            lent.ids = [str(uuid7()) for _ in range(FILES_MAX)]
            lent.output = output_of(exchange)
            lent.header["file_ids"] = lent.ids
        return lent

    async def _lend_all(
        self,
        request: AttemptRequest,
        sandbox: Sandbox,
        folder: Path,
        ids: Sequence[UUID],
        lent: Lent,
    ) -> None:
        found = {
            row.id: row
            for row in await patiently(
                lambda: carried_files.of_tenant(self._database, ids, request.tenant_id)
            )
        }
        places = lent.header["files"] = {}
        for file_id in ids:
            row = found.get(file_id)
            if row is None:
                raise NotCarried(
                    ErrorType.TYPE, f"an input refers to the file {file_id}, which does not exist"
                )
            _refuse_pickle(row, request, sandbox.tier)
            own = folder / str(file_id)
            lent.folders.append(own)
            name = _plain_name(row.filename)
            places[str(file_id)] = [f"{sandbox.files_path}/{file_id}/{name}", row.format]
            try:
                await asyncio.to_thread(self._lend_one, row, own, name)
                lent.size_bytes += row.size_bytes
            except (FileCorruptError, OSError) as problem:
                log.exception("file_not_lent", file_id=str(file_id))
                raise NotCarried(
                    ErrorType.ENVIRONMENT, f"the file {file_id} cannot be read: {problem}"
                ) from None

    def _lend_one(self, row: CarriedFile, folder: Path, name: str) -> None:
        folder.mkdir(mode=0o755, exist_ok=True)
        folder.chmod(0o755)
        self._store.lend(row.key, folder / name, size_bytes=row.size_bytes, sha256=row.sha256)

    async def take(
        self, request: AttemptRequest, sandbox: Sandbox, lent: Lent, reply: Reply
    ) -> int:
        """Store the call's files, all or none: first bytes, then rows; return their total size.

        The sandbox may still change files that it holds open: what is hashed is the copy.
        """
        stated = reply.header.get("files") or []
        descriptors = reply.descriptors
        made: list[tuple[CarriedFile, str]] = []
        try:
            entries = _stated(stated, lent.ids)
            if len(entries) != len(descriptors):
                raise NotCarried(ErrorType.SERIALIZATION, "the agent's files cannot be read")
            for (file_id, form, name), descriptor in zip(entries, descriptors, strict=True):
                made.append(await self._take_one(request, sandbox, file_id, form, name, descriptor))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        if made:
            await self._commit(request, sandbox, made)
        return sum(row.size_bytes for row, _ in made)

    async def _take_one(
        self,
        request: AttemptRequest,
        sandbox: Sandbox,
        file_id: UUID,
        form: str,
        name: str,
        descriptor: int,
    ) -> tuple[CarriedFile, str]:
        limit = sandbox.spec.limits.file_bytes
        try:
            size, sha256 = await asyncio.to_thread(
                self._store.adopt,
                tenant_id=request.tenant_id,
                file_id=file_id,
                descriptor=descriptor,
                bytes_max=limit,
            )
        except FileTooLarge:
            raise NotCarried(
                ErrorType.OUTPUT_TOO_LARGE, f"a file is larger than {limit // MIB} MiB"
            ) from None
        except FileCorruptError as problem:
            raise NotCarried(ErrorType.SERIALIZATION, str(problem)) from None
        except OSError as problem:
            raise refused_by_disk(problem) from problem
        row = CarriedFile(
            id=file_id,
            filename=_plain_name(name) if name else f"{request.node_id}.bin",
            key=f"{request.tenant_id}/{file_id}",
            size_bytes=size,
            sha256=sha256,
            format=form,
            isolation=sandbox.tier.value,
            execution_id=request.execution_id,
        )
        return row, FORMATS[form]

    async def _commit(
        self, request: AttemptRequest, sandbox: Sandbox, made: list[tuple[CarriedFile, str]]
    ) -> None:
        try:
            await patiently(
                lambda: carried_files.insert(
                    self._database,
                    made,
                    tenant_id=request.tenant_id,
                    execution_id=request.execution_id,
                    node_execution_id=request.attempt_ref,
                    isolation=sandbox.tier.value,
                )
            )
        except Exception as problem:
            for row, _ in made:
                await asyncio.to_thread(
                    self._store.remove, tenant_id=request.tenant_id, file_id=row.id
                )
            if (over := over_quota(problem)) is None:
                raise
            raise over from None

    async def give_back(self, lent: Lent) -> None:
        """Remove the lent files. A sandbox can still read what it has open or mapped."""
        if lent.folders or lent.output is not None:
            await asyncio.to_thread(_clear, lent)


def refused_by_disk(problem: OSError) -> NotCarried:
    """Return the error of a result that the runner's own disk did not accept."""
    log.error("result_not_stored", fault=problem.strerror)
    text = f"the disk of the runner does not take the result: {problem.strerror}"
    return NotCarried(ErrorType.ENVIRONMENT, text, retryable=True)


def over_quota(problem: Exception) -> NotCarried | None:
    """Return the error of a file over its tenant's quota; None for any other problem."""
    told = translate(problem)
    if told is None or told.reason != FILE_QUOTA_REACHED:
        return None
    return NotCarried(ErrorType.OUTPUT_TOO_LARGE, told.message)


def _clear(lent: Lent) -> None:
    for folder in lent.folders:
        shutil.rmtree(folder, ignore_errors=True)
    if lent.output is not None and lent.output.exists():
        os.truncate(lent.output, 0)


def _referred(inputs: Sequence[tuple[str, bytes]], carries: Carries) -> list[UUID]:
    found: dict[UUID, None] = {}
    for name, text in inputs:
        if name not in carries.inputs or b'"$file"' not in text:
            continue
        try:
            for each in references(msgspec.json.decode(text)):
                found[UUID(each)] = None
        except (ValueError, RecursionError):
            raise NotCarried(
                ErrorType.TYPE, f"input {name!r} refers to a file by an invalid id"
            ) from None
    if len(found) > FILES_MAX:
        raise NotCarried(ErrorType.TYPE, f"a call takes at most {FILES_MAX} files")
    return list(found)


def _refuse_pickle(row: CarriedFile, request: AttemptRequest, tier: Tier) -> None:
    if row.format != PICKLE:
        return
    why = pickle_refusal(
        of_this_run=row.execution_id == request.execution_id,
        made_in=row.isolation,
        opened_in=tier,
    )
    if why:
        raise NotCarried(ErrorType.SERIALIZATION, why)


def _stated(stated: object, ids: Sequence[str]) -> list[tuple[UUID, str, str]]:
    """Parse the agent's list of its files, which is untrusted."""
    entries = []
    left = set(ids)
    for entry in stated if isinstance(stated, list) else ():
        match entry:
            case [str(file_id), str(form), str(name)] if file_id in left and form in FORMATS:
                left.discard(file_id)
                entries.append((UUID(file_id), form, name))
            case _:
                raise NotCarried(ErrorType.SERIALIZATION, "the agent's files cannot be read")
    return entries


def _plain_name(name: str) -> str:
    """Sanitise a name so that it is just a file name."""
    kept = _NOT_PLAIN.sub("_", name)
    kept = kept.encode("utf-8", "replace")[:_NAME_BYTES_MAX].decode("utf-8", "ignore")
    return "_" if kept in {"", ".", ".."} else kept
