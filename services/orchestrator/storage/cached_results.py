"""Cached results, found by the digest of what they were computed from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, LiteralString

from services.kit.pg import Db, Row
from services.orchestrator.domain.cache_queue import Answer, Ask, Hit
from services.orchestrator.domain.commands import CacheCommand
from services.orchestrator.domain.values import FileValue, NodeOutput
from services.orchestrator.storage.recovery import split_object

# The key is a digest of source and types, Python version, packages and inputs. An entry is a hit
# only while the caller may read its node version, its run is not being removed, and its file, if
# any, is present and unchanged.
_FIND: Final[LiteralString] = """
    WITH asked AS MATERIALIZED (
        SELECT given.at, given.tenant_id, given.ttl_ms,
               encode(sha256(convert_to(jsonb_build_array(
                   1, version.code, version.main_function, version.python_version,
                   version.input_types, version.output_types, lock.lock_digest, given.inputs
               )::text, 'UTF8')), 'hex') AS digest
          FROM unnest($1::int[], $2::uuid[], $3::uuid[], $4::text[], $5::bigint[])
               AS given (at, tenant_id, version_id, inputs, ttl_ms)
          JOIN python_node_versions AS version ON version.id = given.version_id
          JOIN python_nodes AS node ON node.id = version.node_id AND node.deleted_at IS NULL
           AND (node.tenant_id = given.tenant_id OR node.is_public OR node.is_template)
          JOIN node_version_locks AS lock
            ON lock.node_version_id = version.id AND lock.state IN ('locked', 'none')
    )
    SELECT asked.at, asked.digest, found.*
      FROM asked
      LEFT JOIN LATERAL (
           SELECT source.id, source.output_data, file.id AS file_id, file.file_size_bytes,
                  file.hash_sha256, file.element_counts
             FROM cached_results AS cached
             JOIN node_executions AS source
               ON source.id = cached.node_execution_id AND source.status = 'completed'
             JOIN workflow_executions AS run
               ON run.id = source.workflow_execution_id AND run.tenant_id = cached.tenant_id
              AND run.purge_started_at IS NULL
             JOIN python_node_versions AS version ON version.id = cached.node_version_id
             JOIN python_nodes AS node ON node.id = version.node_id AND node.deleted_at IS NULL
              AND (node.tenant_id = cached.tenant_id OR node.is_public OR node.is_template)
             LEFT JOIN files AS file
               ON file.id = source.output_file_id AND file.tenant_id = cached.tenant_id
              AND file.hash_sha256 = cached.file_sha256
              AND (file.expires_at IS NULL OR file.expires_at > clock_timestamp())
            WHERE cached.tenant_id = asked.tenant_id AND cached.digest = asked.digest
              AND asked.ttl_ms > 0
              AND cached.expires_at > clock_timestamp()
              AND cached.created_at > clock_timestamp() - asked.ttl_ms * interval '1 millisecond'
              AND (source.output_file_id IS NULL AND source.output_data IS NOT NULL
                   OR file.id IS NOT NULL)
           ) AS found ON true
"""


async def find(db: Db, asks: Sequence[Ask]) -> list[Answer]:
    """Look results up; returns an answer for each, in the same order."""
    rows = await db.fetch(
        _FIND,
        list(range(len(asks))),
        [ask.tenant_id for ask in asks],
        [ask.node_version_id for ask in asks],
        [ask.inputs_digest for ask in asks],
        [ask.ttl_ms for ask in asks],
    )
    by_ask = {row["at"]: row for row in rows}
    return [_to_answer(ask, by_ask.get(at)) for at, ask in enumerate(asks)]


_KEEP: Final[LiteralString] = """
    INSERT INTO cached_results
           (tenant_id, digest, node_version_id, node_execution_id, file_sha256, expires_at)
    SELECT DISTINCT ON (given.tenant_id, given.digest)
           given.tenant_id, given.digest, given.version_id, source.id, file.hash_sha256,
           clock_timestamp() + given.ttl_ms * interval '1 millisecond'
      FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::bigint[])
           AS given (node_execution_id, version_id, tenant_id, digest, ttl_ms)
      JOIN node_executions AS source
        ON source.id = given.node_execution_id AND source.status = 'completed'
      LEFT JOIN files AS file ON file.id = source.output_file_id
     WHERE source.output_file_id IS NULL OR file.hash_sha256 IS NOT NULL
     ORDER BY given.tenant_id, given.digest, source.completed_at DESC
        ON CONFLICT (tenant_id, digest) DO UPDATE
       SET node_version_id = EXCLUDED.node_version_id,
           node_execution_id = EXCLUDED.node_execution_id, file_sha256 = EXCLUDED.file_sha256,
           created_at = clock_timestamp(), expires_at = EXCLUDED.expires_at
"""


async def keep(db: Db, results: Iterable[CacheCommand]) -> None:
    """Store committed results; a later one replaces an equal entry."""
    await db.execute(_KEEP, *map(list, zip(*results, strict=True)))


def _to_answer(ask: Ask, row: Row | None) -> Answer:
    if row is None:
        return Answer(ask, None, None)
    output = None if row["id"] is None else _to_output(ask, row)
    return Answer(ask, row["digest"], None if output is None else Hit(row["id"], output))


def _to_output(ask: Ask, row: Row) -> NodeOutput | None:
    if row["file_id"] is not None:
        return FileValue(
            row["file_id"],
            row["file_size_bytes"],
            bytes.fromhex(row["hash_sha256"]),
            row["element_counts"] or {},
        )
    texts = split_object(row["output_data"])
    if texts.keys() != set(ask.outputs):
        return None
    return tuple(texts[name] for name in ask.outputs)
