"""The cache of results in a world: what it answers, and what it keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from services.orchestrator.storage import cached_results
from tests.simulation.store import Row, Store


def _digest(version_id: UUID, inputs: str) -> str:
    return hashlib.sha256(f"{version_id} {inputs}".encode()).hexdigest()


def _find(
    store: Store,
    numbers: Sequence[int],
    tenants: Sequence[UUID],
    versions: Sequence[UUID],
    inputs: Sequence[str],
    ttls_ms: Sequence[int],
) -> list[Row]:
    answers = []
    for at, tenant_id, version_id, given, ttl_ms in zip(
        numbers, tenants, versions, inputs, ttls_ms, strict=True
    ):
        digest = _digest(version_id, given)
        answer: Row = {"at": at, "digest": digest, "id": None, "file_id": None}
        kept = store.cached.get((tenant_id, digest))
        if kept is not None and store.locks[version_id] in ("locked", "none"):
            age = store.clock() - kept["created_at"]
            source = store.nodes[kept["node_execution_id"]]
            gone = source["run_id"] in store.purged
            if age < timedelta(milliseconds=ttl_ms) and not gone:
                answer |= {"id": source["id"], "output_data": source["output_data"]}
        answers.append(answer)
    return answers


def _keep(store: Store, *columns: Sequence[Any]) -> None:
    for row_id, _version_id, tenant_id, digest, _ttl_ms in zip(*columns, strict=True):
        if store.nodes[row_id]["status"] == "completed":
            store.cached[tenant_id, digest] = {
                "node_execution_id": row_id,
                "created_at": store.clock(),
            }


ANSWERS: Final[dict[str, Callable[..., Any]]] = {
    cached_results._FIND: _find,
    cached_results._KEEP: _keep,
}
