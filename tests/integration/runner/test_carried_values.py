"""Arrays, tables, pickles and files between real sandboxes, over the real store and its rows."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from services.kit.ids import uuid7
from services.kit.pg import open_pool
from services.runner.domain.attempts import AttemptRequest
from services.runner.domain.carried import carries_of
from services.runner.domain.limits import MIB, Limits
from services.runner.gateways.file_store import FileStore
from services.runner.gateways.sandbox.bubblewrap import BubblewrapHost
from services.runner.gateways.sandbox.exchange import make_exchange
from services.runner.gateways.sandbox.port import Interpreter, Reply, Sandbox, SandboxSpec
from services.runner.usecases.carried import CarriedFiles, NotCarried
from tests import factories
from tests.integration.runner.conftest import load_header
from tests.support.database import Database

# Where this suite's own numpy and the like are: an environment like any other.
PACKAGES = Path(np.__file__).parents[1]
FILE, ARRAY, PICKLE = {"t": "file"}, {"t": "ndarray"}, {"t": "pickle"}
INT, STR = {"t": "int"}, {"t": "str"}
HEAD = "from __future__ import annotations\n"


@dataclass(frozen=True)
class Bench:
    """Sandboxes, the store, and a run whose nodes use them."""

    host: BubblewrapHost
    interpreter: Interpreter
    store: FileStore
    carried: CarriedFiles
    request: AttemptRequest
    sql: psycopg.Connection[Any]
    folder: Path
    started: list[Sandbox]

    async def node(
        self,
        code: str,
        inputs: Mapping[str, Any] | None = None,
        output: Any = None,
        limits: Limits | None = None,
    ) -> Node:
        sandbox_id = uuid.uuid4()
        sandbox = await self.host.start(
            SandboxSpec(
                sandbox_id=sandbox_id,
                python=self.interpreter.executable,
                prefix=self.interpreter.prefix,
                agent=self.interpreter.agent,
                environment=PACKAGES,
                limits=limits or Limits(),
                exchange=make_exchange(self.folder / "exchange", sandbox_id),
            )
        )
        self.started.append(sandbox)
        header = load_header(HEAD + code, inputs, {"result": output or INT}, environment=PACKAGES)
        reply = await sandbox.request(header)
        assert "loaded" == reply.header["op"], reply.header
        return Node(self, sandbox, header, self.request)


@dataclass
class Node:
    """A loaded node, called as the runner calls it."""

    bench: Bench
    sandbox: Sandbox
    header: dict[str, Any]
    request: AttemptRequest

    async def call(self, **inputs: Any) -> Any:
        """Give the output's JSON value; raises NotCarried, and AssertionError with an error."""
        carried, limits = self.bench.carried, self.sandbox.spec.limits
        texts = [(name, json.dumps(value).encode()) for name, value in inputs.items()]
        lent = await carried.lend(
            self.request, self.sandbox, carries_of(self.header["inputs"], self.header["outputs"]),
            texts,
        )  # fmt: skip
        try:
            reply = await self.sandbox.request(
                {
                    "op": "call",
                    "id": 1,
                    "inputs": [[name, len(text), []] for name, text in texts],
                    "output_bytes_max": limits.output_bytes,
                    "context": {"QFLOW_OUTPUT_FILE": self.sandbox.output_path},
                    **lent.header,
                },
                b"".join(text for _, text in texts),
                reply_bytes_max=limits.output_bytes + 4096,
                descriptors_max=lent.descriptors_max,
            )
            if "error" in reply.header:
                raise AssertionError(reply.header["error"]["type"], reply.header["error"])
            await carried.take(self.request, self.sandbox, lent, reply)
        finally:
            await carried.give_back(lent)
        return json.loads(reply.body)

    async def fails(self, **inputs: Any) -> tuple[str, str]:
        """Give the kind of the error and its message."""
        try:
            found = await self.call(**inputs)
        except AssertionError as problem:
            kind, error = problem.args
            return str(kind), str(error["message"])
        except NotCarried as refused:
            return str(refused.error.type), refused.error.message
        raise AssertionError(f"it gave {found}")


@pytest.fixture
async def bench(
    database: Database,
    sandbox_host: BubblewrapHost,
    interpreters: dict[str, Interpreter],
    tmp_path: Path,
) -> AsyncIterator[Bench]:
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    pool = await open_pool(database.url("qflow_runner_engine"), application_name="t", size_max=2)
    store = FileStore(tmp_path / "files")
    with database.connect() as sql:
        request = _run(sql, factories.user(sql))
        made = Bench(
            host=sandbox_host,
            interpreter=interpreters[own],
            store=store,
            carried=CarriedFiles(store, pool),
            request=request,
            sql=sql,
            folder=tmp_path,
            started=[],
        )
        yield made
        for sandbox in made.started:
            await sandbox.kill()
    await pool.close()


def _run(sql: psycopg.Connection[Any], owner: factories.User) -> AttemptRequest:
    node = factories.node(sql, owner)
    edges = [("", "x", "a", "x")]
    workflow = factories.workflow(sql, owner, nodes={"a": node}, edges=edges, outputs=[("y", "a")])
    run, ref = uuid7(), uuid7()
    sql.execute(
        "INSERT INTO workflow_executions (id, workflow_id, workflow_version, status, shard,"
        " started_at, tenant_id, created_by) VALUES (%s, %s, 1, 'running', 0, now(), %s, %s)",
        (run, workflow, owner.id, owner.id),
    )
    sql.execute(
        "INSERT INTO node_executions (id, workflow_execution_id, node_id, node_type, status,"
        " started_at, execution_order) VALUES (%s, %s, 'a', 'python', 'running', now(), 0)",
        (ref, run),
    )
    return AttemptRequest(
        attempt_ref=ref,
        token=1,
        execution_id=run,
        tenant_id=owner.id,
        node_id="a",
        node_version_id=node.version_id,
        attempt=1,
        inputs=[],
        outputs=["result"],
        timeout_s=10,
    )


async def test_an_array_is_mapped_by_its_reader_and_is_the_readers_own(bench: Bench) -> None:
    """B61: every kind of array that has no Python objects in it."""
    maker = await bench.node(
        "import numpy as np\n"
        "def main(kind: str) -> np.ndarray:\n"
        "    return {\n"
        "        'large': lambda: np.arange(1_500_000, dtype='f8').reshape(3, -1),\n"
        "        'scalar': lambda: np.array(5), 'empty': lambda: np.zeros((0, 3)),\n"
        "        'fortran': lambda: np.asfortranarray(np.arange(6).reshape(2, 3)),\n"
        "        'sliced': lambda: np.arange(20)[::3], 'big': lambda: np.array([1, 2], '>i4'),\n"
        "        'record': lambda: np.array([(1, 2.5)], [('a', 'i4'), ('b', 'f8')]),\n"
        "    }[kind]()\n",
        {"kind": STR},
        ARRAY,
    )
    reader = await bench.node(
        "import numpy as np\n"
        "def main(x: np.ndarray) -> str:\n"
        "    assert type(x) is np.ndarray\n"
        "    kept = (str(x.dtype), x.shape, x.tolist() if x.size < 100 else float(x.sum()))\n"
        "    if x.size: x.flat[0] = x.flat[-1]\n"  # its own pages
        "    return repr(kept)\n",
        {"x": ARRAY},
        STR,
    )
    for kind, expected in {
        "large": ("float64", (3, 500_000), 1_124_999_250_000.0),
        "scalar": ("int64", (), 5),
        "empty": ("float64", (0, 3), []),
        "fortran": ("int64", (2, 3), [[0, 1, 2], [3, 4, 5]]),
        "sliced": ("int64", (7,), [0, 3, 6, 9, 12, 15, 18]),
        "big": (">i4", (2,), [1, 2]),
        "record": ("[('a', '<i4'), ('b', '<f8')]", (1,), [(1, 2.5)]),
    }.items():
        made = await maker.call(kind=kind)
        for _ in range(2):  # what one reader writes into its copy is nobody else's
            assert repr(expected) == await reader.call(x=made), kind
    rows = bench.sql.execute("SELECT DISTINCT format, mime_type, isolation FROM files").fetchall()
    assert [("npy", "application/x-npy", "T2")] == rows


async def test_the_next_array_finds_its_pages_ready(bench: Bench) -> None:
    """B61: whether it is as large as the one before it, smaller, larger, or of another type."""
    maker = await bench.node(
        "import os\n"
        "import numpy as np\n"
        "def ready() -> int:\n"
        "    at = '/proc/self/fd'\n"
        "    own = [f'{at}/{each}' for each in os.listdir(at) if os.path.lexists(f'{at}/{each}')]\n"
        "    found = [os.stat(each) for each in own if 'memfd:value' in os.readlink(each)]\n"
        "    return sum({each.st_ino: each.st_size for each in found}.values())\n"
        "def main(kind: str, size: int) -> np.ndarray:\n"
        "    made = np.arange(size, dtype='i8')\n"
        "    made[0] = ready()\n"
        "    return made.view('M8[s]') if kind == 'moments' else made\n",
        {"kind": STR, "size": INT},
        ARRAY,
    )
    reader = await bench.node(
        "import numpy as np\n"
        "def main(x: np.ndarray) -> list[int]:\n"
        "    x = x.view('i8')\n"
        "    return [int(x[0]), x.size, int(x[1:].sum())]\n",
        {"x": ARRAY},
        {"t": "list", "item": INT},
    )
    head, ready = 128, 0  # of numpy's format, and what stood ready for the call
    for kind, size, after in [
        ("numbers", 1_000_000, 1_000_000),
        ("numbers", 1_000_000, 1_000_000),
        ("numbers", 500_000, 1_000_000),
        ("moments", 1_000_000, 1_000_000),
        ("numbers", 1_500_000, 1_500_000),  # does not fit
        ("numbers", 1_500_000, 1_500_000),
        ("numbers", 3_000_000, 1_500_000),  # more than is ever kept ready
        ("numbers", 10, 1_500_000),
        ("numbers", 1_500_000, 1_500_000),
    ]:
        made = await maker.call(kind=kind, size=size)
        expected = [ready, size, size * (size - 1) // 2]
        assert expected == await reader.call(x=made), (kind, size)
        ready = head + 8 * after


@pytest.mark.parametrize("tag", ["arrow", "pandas", "polars"])
async def test_a_table_goes_from_node_to_node(bench: Bench, tag: str) -> None:
    make = {
        "arrow": "import pyarrow as m\nmake = m.table\n",
        "pandas": "import pandas as m\nmake = m.DataFrame\n",
        "polars": "import polars as m\nmake = m.DataFrame\n",
    }[tag]
    limits = Limits(memory_bytes=1024 * MIB)
    maker = await bench.node(
        make + "def main() -> m.Any:\n    return make({'n': [1, 2, 3], 's': ['a', 'é', None]})\n",
        output={"t": tag},
        limits=limits,
    )
    to_list = {"arrow": "x.to_pylist()", "pandas": "x.to_dict('records')", "polars": "x.to_dicts()"}
    reader = await bench.node(
        make + f"def main(x: m.Any) -> int:\n    rows = {to_list[tag]}\n"
        "    assert rows[1] == {'n': 2, 's': 'é'}, rows\n    return sum(r['n'] for r in rows)\n",
        {"x": {"t": tag}},
        limits=limits,
    )
    assert 6 == await reader.call(x=await maker.call())
    assert ("type_error", "output 'result'") == _short(
        await (
            await bench.node("def main() -> int:\n    return 5\n", output={"t": tag}, limits=limits)
        ).fails()
    )


def _short(told: tuple[str, str]) -> tuple[str, str]:
    return told[0], told[1].partition(":")[0]


async def test_a_file_keeps_its_name_and_bytes_and_passes_through_uncopied(bench: Bench) -> None:
    maker = await bench.node(
        "from pathlib import Path\n"
        "def main() -> Path:\n"
        "    path = Path('/tmp/übung 🌍.txt')\n"
        "    path.write_bytes(b'one')\n"
        "    return path\n",
        output=FILE,
    )
    passer = await bench.node(
        "import os\nfrom pathlib import Path\n"
        "def main(x: Path) -> Path:\n"
        "    assert x.name == 'übung 🌍.txt' and x.read_text() == 'one'\n"
        "    for change in (x.unlink, lambda: x.chmod(0o777), lambda: x.write_text('two'),\n"
        "                   lambda: (x.parent / 'more').touch()):\n"
        "        try:\n            change()\n"
        "        except OSError:\n            continue\n"
        "        raise AssertionError(change)\n"
        "    import subprocess, sys\n"  # a child sees it too
        "    child = [sys.executable, '-I', '-S', '-c', 'import sys; open(sys.argv[1])', str(x)]\n"
        "    subprocess.run(child, check=True)\n"
        "    return x\n",
        {"x": FILE},
        FILE,
    )
    streamer = await bench.node(
        "import io\nfrom typing import BinaryIO\n"
        "def main(x: BinaryIO) -> BinaryIO:\n"
        "    return io.BytesIO(x.read() + b' more')\n",
        {"x": FILE},
        FILE,
    )
    made = await maker.call()
    assert made == await passer.call(x=made)
    longer = await streamer.call(x=made)
    rows = bench.sql.execute(
        "SELECT id::text, filename, file_size_bytes, hash_sha256, format FROM files ORDER BY id"
    ).fetchall()
    digest = hashlib.sha256(b"one more").hexdigest()
    assert [
        (made["$file"], "übung 🌍.txt", 3, hashlib.sha256(b"one").hexdigest(), None),
        (longer["$file"], "a.bin", 8, digest, None),
    ] == rows


async def test_what_is_no_regular_file_does_not_leave(bench: Bench) -> None:
    """X35, X36, X38: pipes, devices, folders, links to what is not there, and what is too large."""
    maker = await bench.node(
        "import os\nfrom pathlib import Path\n"
        "def main(kind: str) -> Path:\n"
        "    path = Path('/tmp/x')\n"
        "    path.unlink(missing_ok=True)\n"
        "    if kind == 'pipe': os.mkfifo(path)\n"
        "    if kind == 'link': path.symlink_to('/etc/shadow')\n"
        "    if kind == 'sparse':\n"
        "        path = Path(os.environ['QFLOW_OUTPUT_FILE'])\n"
        "        with path.open('wb') as file:\n"
        "            file.truncate(1 << 40)\n"
        "    if kind == 'endless': path = Path('/proc/stat')\n"
        "    try:\n"
        "        return {'folder': Path('/tmp'), 'device': Path('/dev/zero')}.get(kind, path)\n"
        "    finally:\n"
        "        if kind == 'link':\n"
        "            os.symlink('/nowhere', '/tmp/y')\n"
        "            os.replace('/tmp/y', '/tmp/x')\n",
        {"kind": STR},
        FILE,
    )
    assert "cannot be opened" in (await maker.fails(kind="link"))[1]
    for kind in ("pipe", "device", "folder"):
        told, message = await maker.fails(kind=kind)
        assert ("serialization_error", True) == (told, "regular" in message), (kind, message)
    assert "user_error" == (await maker.fails(kind="sparse"))[0]
    await maker.call(kind="endless")  # of no size: what it holds is not read
    [(size,)] = bench.sql.execute("SELECT file_size_bytes FROM files").fetchall()
    assert 0 == size


async def test_a_large_file_needs_no_memory(bench: Bench) -> None:
    """Written and read by a sandbox of 64 MiB, through a temporary folder of 1 MiB."""
    limits = Limits(memory_bytes=64 * MIB, temporary_bytes=MIB)
    maker = await bench.node(
        "import os\nfrom pathlib import Path\n"
        "def main(count: int) -> Path:\n"
        "    path = Path(os.environ['QFLOW_OUTPUT_FILE'])\n"
        "    with path.open('wb') as file:\n"
        "        for at in range(count):\n"
        "            file.write(bytes([at % 251]) * (1 << 20))\n"
        "    return path\n",
        {"count": INT},
        FILE,
        limits,
    )
    reader = await bench.node(
        "from typing import BinaryIO\n"
        "def main(x: BinaryIO) -> int:\n"
        "    return sum(len(piece) for piece in iter(lambda: x.read(1 << 20), b''))\n",
        {"x": FILE},
        INT,
        limits,
    )
    made = await maker.call(count=100)
    assert 100 * MIB == await reader.call(x=made)
    assert 3 * MIB == await reader.call(x=await maker.call(count=3))  # what was there is gone
    assert "user_error" == (
        await (await bench.node(
            "import os\nfrom pathlib import Path\n"
            "def main() -> Path:\n"
            "    path = Path(os.environ['QFLOW_OUTPUT_FILE'])\n"
            "    with path.open('wb') as file:\n"
            "        for _ in range(9): file.write(bytes(1 << 20))\n"
            "    return path\n",
            output=FILE,
            limits=replace(limits, file_bytes=8 * MIB),
        )).fails()
    )[0]  # fmt: skip


async def test_a_pickle_stays_within_its_run_and_its_walls(bench: Bench) -> None:
    """X29, B106."""
    maker = await bench.node(
        "def main() -> object:\n    return {'set': {1, 2}, 'self': [complex(1, 2)]}\n",
        output=PICKLE,
    )
    reader = await bench.node(
        "def main(x: object) -> str:\n    return repr(x)\n", {"x": PICKLE}, STR
    )
    made = await maker.call()
    assert "{'set': {1, 2}, 'self': [(1+2j)]}" == await reader.call(x=made)
    owner = factories.user(bench.sql)
    bench.sql.execute("UPDATE files SET isolation = 'T3'")
    kind, message = await reader.fails(x=made)
    assert ("serialization_error", "a pickle made in T3 is not opened in T2") == (kind, message)
    bench.sql.execute("UPDATE files SET isolation = 'T2'")
    same_tenant = _run(bench.sql, owner)._replace(tenant_id=bench.request.tenant_id)
    reader.request = same_tenant
    kind, message = await reader.fails(x=made)
    assert ("serialization_error", "a pickle is given to nodes of its own run alone") == (
        kind,
        message,
    )
    reader.request = _run(bench.sql, owner)
    kind, message = await reader.fails(x=made)
    assert ("type_error", True) == (kind, "does not exist" in message)


async def test_only_what_a_node_pickled_is_opened_as_a_pickle(bench: Bench) -> None:
    """X28, X29: bytes that a caller uploaded are none, whatever they say."""
    import pickle

    content = pickle.dumps({"a": 1})
    file_id = uuid7()
    size, sha256 = bench.store.write(
        tenant_id=bench.request.tenant_id, file_id=file_id, parts=[content]
    )
    bench.sql.execute(
        "INSERT INTO files (id, filename, original_filename, file_path, file_size_bytes,"
        " hash_sha256, tenant_id, created_by) VALUES (%s, 'a', 'a', %s, %s, %s, %s, %s)",
        (
            file_id,
            f"{bench.request.tenant_id}/{file_id}",
            size,
            sha256,
            *[bench.request.tenant_id] * 2,
        ),
    )
    reader = await bench.node(
        "def main(x: object) -> str:\n    return repr(x)\n", {"x": PICKLE}, STR
    )
    kind, message = await reader.fails(x={"$file": str(file_id)})
    assert ("type_error", True) == (kind, "pickle" in message), message


async def test_a_pickle_that_attacks_meets_the_readers_sandbox_alone(bench: Bench) -> None:
    """B106: code on load, deep nesting."""
    maker = await bench.node(
        "class Bad:\n"
        "    def __reduce__(self):\n        import os\n        return (os._exit, (3,))\n"
        "def main() -> object:\n    return Bad()\n",
        output=PICKLE,
    )
    reader = await bench.node("def main(x: object) -> int:\n    return 1\n", {"x": PICKLE})
    made = await maker.call()
    with pytest.raises(Exception, match="ended before it returned"):
        await reader.call(x=made)
    assert made != await maker.call()  # the maker goes on


async def test_what_cannot_be_carried_is_told_and_leaves_nothing(bench: Bench) -> None:
    """B105, B71."""
    objects = await bench.node(
        "import numpy as np\ndef main() -> np.ndarray:\n    return np.array([{}, None])\n",
        output=ARRAY,
    )
    assert "serialization_error" == (await objects.fails())[0]
    unpicklable = await bench.node("def main() -> object:\n    return lambda: 1\n", output=PICKLE)
    assert "serialization_error" == (await unpicklable.fails())[0]
    ones = "import numpy as np\ndef main() -> np.ndarray:\n    return np.ones(1000)\n"
    maker = await bench.node(ones, output=ARRAY)
    await maker.call()
    bench.sql.execute("UPDATE file_usage SET files_max = 1")
    kind, message = await maker.fails()
    assert ("output_too_large", True) == (kind, "quota" in message)
    stored = list((bench.folder / "files" / str(bench.request.tenant_id)).iterdir())
    assert 1 == len(stored)
    bench.sql.execute("UPDATE file_usage SET files_max = 9")
    stored[0].chmod(0o600)
    stored[0].write_bytes(stored[0].read_bytes()[:-1] + b"x")
    reader = await bench.node("def main(x: object) -> int:\n    return 1\n", {"x": ARRAY})
    kind, message = await reader.fails(x={"$file": stored[0].name})
    assert ("environment_error", True) == (kind, "not what was written" in message)  # F42


async def test_forged_answers_about_files_are_refused(bench: Bench) -> None:
    """B66, X24: ids that were not given, formats that are none, and more or fewer files."""
    maker = await bench.node("def main() -> int:\n    return 1\n", output=FILE)
    exchange = maker.sandbox.spec.exchange
    assert exchange is not None
    lent = await bench.carried.lend(
        bench.request, maker.sandbox, carries_of([], [{"type": FILE}]), []
    )
    good = lent.ids[0]
    for stated in (
        [[str(uuid.uuid4()), "", "a"]],
        [[good, "exe", "a"]],
        [[good, "", "a"], [good, "", "a"]],
        [[good, "", "a"]],
        [good],
    ):
        read_end, write_end = os.pipe()
        os.close(write_end)
        count = 0 if stated == [[good, "", "a"]] else 1
        if not count:
            os.close(read_end)
        reply = Reply({"files": stated}, b"", (read_end,) * count)
        with pytest.raises(NotCarried):
            await bench.carried.take(bench.request, maker.sandbox, lent, reply)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(read_end)
    assert [(0,)] == bench.sql.execute("SELECT count(*) FROM files").fetchall()
