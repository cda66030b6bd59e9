"""Stores large outputs: first the bytes, then the row, then the result refers to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from services.kit import crash
from services.kit.ids import uuid7
from services.kit.pg import Pool
from services.runner.domain.attempts import AttemptRequest, FileReference
from services.runner.domain.lists import count_elements
from services.runner.gateways.file_port import FileBytes
from services.runner.storage import files
from services.runner.usecases.carried import over_quota, refused_by_disk
from services.runner.usecases.patience import patiently


class Outputs:
    """Stores outputs as one JSON object per attempt."""

    def __init__(self, store: FileBytes, pool: Pool) -> None:
        self._store = store
        self._pool = pool

    async def save(
        self, request: AttemptRequest, outputs: Sequence[tuple[str, bytes]]
    ) -> FileReference:
        """Store outputs; return the reference once bytes and row are durable; raises NotCarried.

        Counts the elements of lists while the texts are at hand: a map over one needs the number,
        and the orchestrator never reads the list.
        """
        file_id = uuid7()
        counts = await asyncio.to_thread(_counts, outputs)
        try:
            size, sha256 = await asyncio.to_thread(
                self._store.write,
                tenant_id=request.tenant_id,
                file_id=file_id,
                parts=_object_parts(outputs),
            )
        except OSError as problem:
            raise refused_by_disk(problem) from problem
        crash.reach("output_bytes_stored")
        try:
            await patiently(
                lambda: files.insert_output(
                    self._pool,
                    file_id,
                    f"{request.node_id}.json"[:255],
                    f"{request.tenant_id}/{file_id}",
                    size,
                    sha256,
                    request.execution_id,
                    request.attempt_ref,
                    request.tenant_id,
                    json.dumps(counts),
                )
            )
        except Exception as problem:
            if (over := over_quota(problem)) is None:
                raise
            await asyncio.to_thread(
                self._store.remove, tenant_id=request.tenant_id, file_id=file_id
            )
            raise over from None
        return FileReference(file_id, size, sha256, "", counts=counts)


def _counts(outputs: Sequence[tuple[str, bytes]]) -> dict[str, int]:
    counted = {name: count_elements(text) for name, text in outputs}
    return {name: count for name, count in counted.items() if count is not None}


def _object_parts(outputs: Sequence[tuple[str, bytes]]) -> list[bytes]:
    """Build the JSON object around the texts, which are kept verbatim."""
    parts = [b"{"]
    for name, text in outputs:
        if len(parts) > 1:
            parts.append(b",")
        parts += [json.dumps(name).encode(), b":", text]
    return [*parts, b"}"]
