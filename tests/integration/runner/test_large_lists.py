"""Lists above 64 KiB with a real runner: mapped over element by element, and put together again."""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from qflow.orchestrator.v1 import execution_pb2

from services.kit.ids import uuid7
from services.kit.pg import Pool, open_pool
from services.orchestrator.domain import compatibility
from services.runner.domain.attempts import AttemptRequest, FileReference, Spliced
from services.runner.gateways.file_port import FileCorruptError
from services.runner.gateways.file_store import FileStore
from services.runner.usecases.inputs import InputTooLarge, StoredInputs
from services.runner.usecases.outputs import Outputs
from tests import factories
from tests.integration.orchestrator.conftest import Orchestra, orchestra
from tests.integration.runner.test_attach import attached, run
from tests.support.database import Database

__all__ = ["orchestra"]

INT, STR = {"t": "int"}, {"t": "str"}
LIST = {"t": "list", "item": STR}
MAPPED: dict[str, Any] = {"map": {"input": "x"}}

MAKE = r"""
def main(x: int) -> list[str]:
    return [f'{at}é"\\,[]{{' * 40 for at in range(x)]
"""
TURN = """
def main(x: str) -> str:
    return x[::-1]
"""
GROW = """
def main(x: str) -> str:
    return x * 300 if x.endswith('7') else x[:10]
"""
COUNT = """
def main(x: str) -> str:
    return str(len(x))
"""
JOIN = """
import hashlib
def main(x: list[str], counts: list[str]) -> int:
    text = '|'.join(x) + '/' + '|'.join(counts)
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)
"""


def plain(code: str, *arguments: Any) -> Any:
    """Call a node's function as plain Python does."""
    module: dict[str, Any] = {}
    exec(code, module)
    return module["main"](*arguments)


async def test_a_large_list_is_mapped_over_and_joined_as_plain_python_does(
    orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B44, I34: elements of a list in a file, elements that are files, lists of both."""

    monkeypatch.setattr(compatibility, "check", lambda *_: None)

    def node(code: str, takes: Any, gives: Any, **more: Any) -> factories.Node:
        owner = orchestra.owner
        return factories.node(orchestra.sql, owner, code=code, takes=takes, gives=gives, **more)

    workflow = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={
            "make": node(MAKE, INT, LIST),
            "turn": node(TURN, STR, STR),
            "grow": node(GROW, STR, STR),
            "count": node(COUNT, STR, STR),
            "join": node(JOIN, LIST, INT, inputs=("x", "counts")),
        },
        edges=[
            ("", "x", "make", "x"),
            ("make", "result", "turn", "x"),
            ("turn", "result", "grow", "x"),
            ("grow", "result", "count", "x"),
            ("grow", "result", "join", "x"),
            ("count", "result", "join", "counts"),
        ],
        outputs=[("out", "join")],
        node_settings={"turn": MAPPED, "grow": MAPPED, "count": MAPPED},
    )
    async with orchestra.running(), attached(orchestra):
        done = await run(orchestra, str(workflow), 300)
    assert execution_pb2.EXECUTION_STATUS_COMPLETED == done.status, done
    turned = [plain(TURN, each) for each in plain(MAKE, 300)]
    grown = [plain(GROW, each) for each in turned]
    expected = plain(JOIN, grown, [plain(COUNT, each) for each in grown])
    assert {"out": expected} == json.loads(done.output_json)
    files = orchestra.rows(
        "SELECT definition_node_id, element_counts::text FROM files"
        " JOIN node_executions AS node ON node.id = node_execution_id"
        " ORDER BY definition_node_id, 2"
    )
    large = [each for each in grown if len(each.encode()) > 64 * 1024]
    assert large
    assert [*[("grow", "{}")] * len(large), ("make", '{"result": 300}')] == files
    assert orchestra.rows(
        "SELECT 1 FROM node_executions WHERE node_id = 'turn' AND output_data IS NULL"
    ), "the whole list is too long for a row, and stands in the elements'"


class CountingStore(FileStore):
    """A real store that counts how often a file is read whole."""

    reads = 0

    def read(self, key: str, *, size_bytes: int, sha256: str) -> bytes:
        """Read it."""
        self.reads += 1
        return super().read(key, size_bytes=size_bytes, sha256=sha256)


class Subject:
    """Files of one run, as a runner stores and reads them."""

    def __init__(self, pool: Pool, store: CountingStore, request: AttemptRequest) -> None:
        self.pool = pool
        self.store = store
        self.request = request
        self.tenant_id = request.tenant_id

    async def save(self, **outputs: bytes) -> FileReference:
        """Store outputs."""
        return await Outputs(self.store, self.pool).save(self.request, list(outputs.items()))


@pytest.fixture
async def subject(database: Database, tmp_path: Path) -> AsyncIterator[Subject]:
    with database.connect() as sql:
        owner = factories.user(sql)
        node = factories.node(sql, owner)
        workflow = factories.workflow(
            sql, owner, nodes={"a": node}, edges=[("", "x", "a", "x")], outputs=[("out", "a")]
        )
        run_id, ref = uuid7(), uuid7()
        sql.execute(
            "INSERT INTO workflow_executions (id, workflow_id, workflow_version, status,"
            " started_at, tenant_id, created_by) VALUES (%s, %s, 1, 'running', now(), %s, %s)",
            (run_id, workflow, owner.id, owner.id),
        )
        sql.execute(
            "INSERT INTO node_executions (id, workflow_execution_id, node_id, node_type, status,"
            " started_at, execution_order) VALUES (%s, %s, 'a', 'python', 'running', now(), 0)",
            (ref, run_id),
        )
        pool = await open_pool(
            database.url("qflow_runner_engine"), application_name="t", size_max=4
        )
        request = AttemptRequest(
            attempt_ref=ref,
            token=1,
            execution_id=run_id,
            tenant_id=owner.id,
            node_id="a",
            node_version_id=node.version_id,
            attempt=1,
            inputs=[],
            outputs=["result"],
            timeout_s=1,
        )
        yield Subject(pool, CountingStore(tmp_path), request)
        await pool.close()


def at(file: FileReference, field: str, index: int | None = None) -> FileReference:
    return FileReference(file.file_id, file.size_bytes, file.sha256, field, index)


MUCH = 1 << 30


async def test_elements_of_one_list_cost_one_read_however_many_ask_at_once(
    subject: Subject,
) -> None:
    """I34: each gets the exact text that was written."""
    texts = [b'{"a": 1.0}', b"1e+16", b'"\xc3\xa9,]"', b"[1 , 2]", b"null", b"-0.0"] * 300
    file = await subject.save(other=b'"x"', result=b"[" + b" , ".join(texts) + b"]")
    assert {"result": len(texts)} == file.counts
    stored = StoredInputs(subject.store, subject.pool)
    found = await asyncio.gather(
        *(
            stored.text(at(file, "result", index), subject.tenant_id, bytes_max=MUCH)
            for index in range(len(texts))
        )
    )
    assert texts == found
    assert 1 == subject.store.reads


async def test_split_lists_are_forgotten_above_a_bound_and_read_again(subject: Subject) -> None:
    """The last one stays even where it is larger than the bound."""
    one = await subject.save(result=b"[1,2,3]")
    other = await subject.save(result=b"[4,5,6]")
    stored = StoredInputs(subject.store, subject.pool, cache_bytes_max=100)
    asked = [(one, 0), (one, 1), (other, 0), (other, 2), (one, 2)]
    found = [
        await stored.text(at(file, "result", index), subject.tenant_id, bytes_max=MUCH)
        for file, index in asked
    ]
    assert [b"1", b"2", b"4", b"6", b"3"] == found
    assert 3 == subject.store.reads


async def test_pieces_in_texts_and_files_become_one_text_below_a_bound(subject: Subject) -> None:
    one = await subject.save(a=b"[1.0, 2]", b=b'"x"')
    other = await subject.save(b=b'"y"')
    stored = StoredInputs(subject.store, subject.pool)
    value = Spliced((b"[0,", at(one, "b"), b",null,", at(other, "b"), b"]"))
    text = await stored.text(value, subject.tenant_id, bytes_max=18)
    assert b'[0,"x",null,"y"]' == text
    with pytest.raises(InputTooLarge):
        await stored.text(value, subject.tenant_id, bytes_max=15)
    with pytest.raises(InputTooLarge):
        await stored.text(at(one, "a", 0), subject.tenant_id, bytes_max=2)


async def test_what_is_not_the_tenants_or_not_there_cannot_be_read(subject: Subject) -> None:
    """X24: neither as an element nor as a piece, and a refusal is not kept."""
    file = await subject.save(result=b"[1,2]", word=b'"x"')
    stored = StoredInputs(subject.store, subject.pool)
    stranger = uuid.uuid4()

    async def refused(value: FileReference | Spliced, tenant_id: UUID) -> str:
        with pytest.raises(FileCorruptError) as problem:
            await stored.text(value, tenant_id, bytes_max=MUCH)
        return str(problem.value)

    first = at(file, "result", 0)
    assert b"1" == await stored.text(first, subject.tenant_id, bytes_max=MUCH)
    assert "the file is not known" == await refused(first, stranger)
    assert "the file is not known" == await refused(Spliced((at(file, "word"),)), stranger)
    assert "'result' has no element 2" == await refused(at(file, "result", 2), subject.tenant_id)
    assert "'word' is not a list" == await refused(at(file, "word", 0), subject.tenant_id)
    assert "the file has no field 'z'" == await refused(at(file, "z", 0), subject.tenant_id)
    forged = FileReference(file.file_id, file.size_bytes, hashlib.sha256(b"").hexdigest(), "result")
    assert "the file is not known" == await refused(forged, subject.tenant_id)
    assert b"2" == await stored.text(at(file, "result", 1), subject.tenant_id, bytes_max=MUCH)


async def test_counts_stand_on_the_files_row_for_whoever_takes_the_run_over(
    database: Database, subject: Subject
) -> None:
    await subject.save(a=b"[]", b=b"null", c=b'{"d":[1]}', e=b"[[1,2],[3]]")
    with database.connect() as sql:
        [(text,)] = sql.execute("SELECT element_counts::text FROM files").fetchall()
    assert {"a": 0, "b": 0, "e": 2} == msgspec.json.decode(text)
