"""Lists and searches over gRPC, with 100,000 nodes in the table."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from qflow.registry.v1 import node_service_pb2 as pb
from qflow.registry.v1.node_service_pb2_grpc import NodeServiceStub

from bench.figures import figure
from bench.flow import Flow, running

_NODES: Final = 100_000
_CALLS: Final = 400
_WARM_UP: Final = 60
_TARGET_MS: Final = 20.0
_WORDS: Final = (
    "load store clean merge split join sift map reduce group sort rank score train test fit predict"
    " parse format render fetch push pull queue batch stream window daily hourly weekly user"
    " invoice payment refund stock price tax region city weather sensor image audio video report"
    " chart column index schema event alert metric trace"
)
# Nine nodes in ten are the owner's, the others another tenant's, of whom one in a hundred shows
# its node to everybody. Names have three words and a number, sources about a kilobyte.
_FILL: Final = """
    WITH words AS (SELECT string_to_array(%(words)s, ' ') AS w),
    made AS (
        INSERT INTO python_nodes (name, description, code, main_function, python_version,
               dependencies, input_types, output_types, tenant_id, created_by, created_at,
               updated_at, is_public)
        SELECT w[1 + n %% c] || ' ' || w[1 + n / 7 %% c] || ' ' || w[1 + n / 91 %% c] || ' ' || n,
               'Reads rows of the ' || w[1 + n / 3 %% c] || ' table, gives what is left after the '
                   || w[1 + n / 13 %% c] || ' filter',
               'def main(x: int) -> int:' || repeat(E'\\n    x = x + 1', 75) || E'\\n    return x',
               'main', CASE WHEN n %% 50 = 0 THEN '3.12' ELSE '3.11' END, '[]',
               '[{"name": "x", "type": {"t": "int"}, "kind": "positional", "required": true,
                  "default_json": null}]',
               '[{"name": "result", "type": {"t": "int"}}]', owner, owner,
               now() - n * interval '1 min', now() - n * interval '1 min', n %% 1000 = 0
          FROM words, LATERAL (SELECT cardinality(w) AS c) AS s, generate_series(1, %(nodes)s) AS n,
               LATERAL (SELECT CASE WHEN n %% 10 = 0 THEN %(other)s ELSE %(owner)s END::uuid)
                   AS t (owner)
     RETURNING *),
    versions AS (
        INSERT INTO python_node_versions (node_id, version, name, description, code, main_function,
               python_version, dependencies, input_types, output_types, created_by)
        SELECT id, 1, name, description, code, main_function, python_version, dependencies,
               input_types, output_types, created_by FROM made
     RETURNING id, created_by)
    INSERT INTO node_version_locks (node_version_id, tenant_id, state)
    SELECT id, created_by, 'none' FROM versions
"""
_TAG: Final = """
    WITH tag AS (
        INSERT INTO python_node_tags (name, tenant_id, created_by)
        VALUES ('prod', %(owner)s, %(owner)s)
     RETURNING id)
    INSERT INTO python_node_tag_relations (node_id, tag_id)
    SELECT n.id, tag.id FROM python_nodes n, tag
     WHERE n.tenant_id = %(owner)s ORDER BY n.id LIMIT 300
"""
_ORDERS: Final = ("", "create_time", "name", "name desc", "update_time desc", "update_time")
# What people look for: one thing, something common, several words, a part of a name, nothing that
# exists, and all that under other conditions and orders.
_SEARCHES: Final = (
    ("rare", "{number}", ""),
    ("common", "{word}", ""),
    ("common by name", "{word}", "name"),
    ("two words", "{word} {other}", ""),
    ("two words, newest change", "{word} {other}", "update_time desc"),
    ("part of a name", 'name : "{word} {number:.2}"', "name"),
    ("exact name", 'name = "{word} {other} {number}"', ""),
    ("either word", "{word} OR {other}", ""),
    ("without a word", "{word} -{other}", ""),
    ("with conditions", '{word} python_version = "3.12" public = false', ""),
    ("tagged", 'tags : "prod" {word}', ""),
    ("nothing", "{word}{number}", ""),
)


async def list_nodes() -> dict[str, Any]:
    """Milliseconds of a page of 50 nodes of 100,000, in every order, at every depth: the p95."""
    async with _filled() as (flow, chance):
        stub = NodeServiceStub(flow.registry)
        spans: dict[str, list[float]] = {}
        tokens = dict.fromkeys(_ORDERS, "")
        for call in range(_CALLS + _WARM_UP):
            order = _ORDERS[call % len(_ORDERS)]
            # Most go on with the list, some begin anew.
            token = tokens[order] if chance.random() < 0.8 else ""
            request = pb.ListNodesRequest(order_by=order, page_token=token)
            begin = time.perf_counter()
            page = await stub.ListNodes(request)
            span = (time.perf_counter() - begin) * 1000
            assert len(page.nodes) == 50, len(page.nodes)
            tokens[order] = page.next_page_token
            if call >= _WARM_UP:
                spans.setdefault(order or "newest first", []).append(span)
    return _figure(spans)


async def search_nodes() -> dict[str, Any]:
    """Milliseconds of the first 50 hits among 100,000 nodes, searches of many kinds: the p95."""
    async with _filled() as (flow, chance):
        stub = NodeServiceStub(flow.registry)
        spans: dict[str, list[float]] = {}
        words = _WORDS.split()
        for call in range(_CALLS + _WARM_UP):
            name, text, order = _SEARCHES[call % len(_SEARCHES)]
            word, other = chance.sample(words, 2)
            number = str(chance.randrange(10_000, _NODES))
            request = pb.ListNodesRequest(
                filter=text.format(word=word, other=other, number=number), order_by=order
            )
            begin = time.perf_counter()
            page = await stub.ListNodes(request)
            span = (time.perf_counter() - begin) * 1000
            assert page.nodes or not name.startswith("common"), request
            if call >= _WARM_UP:
                spans.setdefault(name, []).append(span)
    return _figure(spans)


@asynccontextmanager
async def _filled() -> AsyncIterator[tuple[Flow, random.Random]]:
    async with running() as flow:
        with flow.suite.sql() as db:
            row = db.execute("SELECT id FROM users WHERE is_owner").fetchone()
            assert row is not None
            other = db.execute(
                "INSERT INTO users (email) VALUES ('other@example.org') RETURNING id"
            ).fetchone()
            assert other is not None
            values = {"owner": row[0], "other": other[0], "words": _WORDS, "nodes": _NODES}
            db.execute(_FILL, values)
            db.execute(_TAG, values)
            db.execute("VACUUM ANALYZE")
        yield flow, random.Random(4)


def _p95(spans: Sequence[float]) -> float:
    return sorted(spans)[int(len(spans) * 0.95)]


def _figure(spans: dict[str, list[float]]) -> dict[str, Any]:
    every = [span for each in spans.values() for span in each]
    told = figure(every, "ms (p95)", "lower", target=_TARGET_MS, floor=0.0, value=_p95(every))
    return told | {
        "median": round(statistics.median(every), 2),
        "p95_of_each": {name: round(_p95(each), 2) for name, each in spans.items()},
    }
