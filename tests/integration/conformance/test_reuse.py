"""Calls in processes of their own: `fork` and `fresh`, in every adapter."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from services.runner.domain.limits import MIB, Limits, Tier
from services.runner.gateways.sandbox.port import (
    Interpreter,
    Reply,
    Sandbox,
    SandboxDied,
    SandboxHost,
    SandboxSpec,
)
from tests.integration.conformance.conftest import ADAPTERS
from tests.integration.conformance.test_adapters import until
from tests.integration.runner.conftest import load_header

INT = {"t": "int"}
FORK, FRESH = "fork", "fresh"

pytestmark = pytest.mark.parametrize("host", ADAPTERS, indirect=True)
both = pytest.mark.parametrize("apart", [FORK, FRESH])


class Zygote:
    """A sandbox whose agent holds nobody's code."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self._calls = 0

    async def prepare(
        self, apart: str, code: str, inputs: dict[str, Any] | None = None
    ) -> tuple[str, Reply]:
        version = str(uuid.uuid4())
        header = load_header(code, inputs) | {"op": "prepare", "version": version, "apart": apart}
        header["env"] = self.sandbox.environment_path
        return version, await self.sandbox.request(header)

    async def call(self, version: str, **texts: str) -> Reply:
        self._calls += 1
        self.sandbox.begin_output()
        header = {
            "op": "call",
            "version": version,
            "id": self._calls,
            "inputs": [[name, len(text), []] for name, text in texts.items()],
            "output_bytes_max": 1 << 22,
            "context": {"QFLOW_NODE_ID": "n"},
        }
        body = "".join(texts.values()).encode()
        return await self.sandbox.request(header, body, reply_bytes_max=1 << 23)


Begin = Callable[..., Awaitable[Zygote]]


@pytest.fixture
async def begin(host: SandboxHost, python: Interpreter) -> AsyncIterator[Begin]:
    begun: list[Sandbox] = []

    async def beginning(limits: Limits | None = None, environment: Path | None = None) -> Zygote:
        sandbox = await host.start(
            SandboxSpec(
                sandbox_id=uuid.uuid4(),
                python=python.executable,
                prefix=python.prefix,
                agent=python.agent,
                environment=environment,
                limits=limits or Limits(),
            )
        )
        begun.append(sandbox)
        return Zygote(sandbox)

    yield beginning
    for sandbox in begun:
        await sandbox.kill()


@both
async def test_nothing_of_a_call_is_there_in_the_next(begin: Begin, apart: str) -> None:
    code = (
        "import os, json\nseen = []\n"
        "def main(x):\n"
        "    seen.append(x)\n    json.mark = getattr(json, 'mark', 0) + 1\n"
        "    os.environ['LEFT'] = 'x'\n    os.chdir('/')\n    print('said', x)\n"
        "    return [len(seen), json.mark, os.environ['QFLOW_NODE_ID']]\n"
    )
    zygote = await begin()
    version, _ = await zygote.prepare(apart, code, {"x": INT})
    other, _ = await zygote.prepare(apart, "def main():\n    return 'another'\n")
    for x in "123":
        reply = await zygote.call(version, x=x)
        assert [1, 1, "n"] == json.loads(reply.body), reply.header
        assert ("", f"said {x}\n") == (reply.header["recycle"], zygote.sandbox.output_tails()[0])
        assert reply.header["usage"]["max_rss_kb"] > 0
    assert b'"another"' == (await zygote.call(other)).body


@both
async def test_files_that_a_call_leaves_are_gone_in_the_next(
    begin: Begin, host: SandboxHost, apart: str
) -> None:
    """A folder with a link in it too; and what is too much to remove takes the sandbox with it."""
    if host.tier is Tier.T0:
        pytest.skip("a bare process has no temporary folder of its own")
    code = (
        "import os\n"
        "def main(x):\n"
        "    own = os.environ['TMPDIR']\n"
        "    found = os.listdir(own)\n"
        "    os.makedirs(own + '/a/b')\n"
        "    os.symlink('/usr', own + '/a/link')\n"
        "    for at in range(x): open('%s/a/b/%d' % (own, at), 'w').close()\n"
        "    return [found, os.path.isdir('/usr/bin')]\n"
    )
    zygote = await begin()
    version, _ = await zygote.prepare(apart, code, {"x": INT})
    for _ in range(2):
        reply = await zygote.call(version, x="20")
        assert [[], True] == json.loads(reply.body), reply.header
        assert "" == reply.header["recycle"]
    reply = await zygote.call(version, x="500")
    assert "temporary files" == reply.header["recycle"]


async def test_files_that_an_import_makes_stay(
    begin: Begin, host: SandboxHost, short_home: Path
) -> None:
    """As a library's cache does, which it made once for all forks."""
    if host.tier is Tier.T0:
        pytest.skip("a bare process has no temporary folder of its own")
    environment = short_home / f"env-{uuid.uuid4()}"
    environment.mkdir(mode=0o755)
    module = environment / "with_cache.py"
    module.write_text(
        "import os\nplace = os.environ['TMPDIR'] + '/cache'\nopen(place, 'w').close()\n"
    )
    module.chmod(0o644)
    zygote = await begin(environment=environment)
    code = "import os, with_cache\ndef main():\n    return os.path.exists(with_cache.place)\n"
    version, _ = await zygote.prepare(FORK, code)
    for _ in range(2):
        assert b"true" == (await zygote.call(version)).body


@both
async def test_how_a_call_fails_is_told_and_the_sandbox_serves_on(begin: Begin, apart: str) -> None:
    """B107: also what ends the process, which is the call's own here."""
    zygote = await begin()
    faults = {
        "def main():\n    return 1 / 0\n": "user_error",
        "1 / 0\ndef main():\n    return 1\n": "user_error",
        "import nothing_of_the_kind\ndef main():\n    return 1\n": "dependency_error",
        "import sys\ndef main():\n    sys.exit(3)\n": "exited",
        "import os\ndef main():\n    os._exit(3)\n": "exited",
        "import os, signal\ndef main():\n    os.kill(os.getpid(), signal.SIGSEGV)\n": "exited",
        "import os\ndef main():\n    os.closerange(3, 1000)\n    return 1\n": "exited",
    }
    for code, expected in faults.items():
        version, _ = await zygote.prepare(apart, code)
        reply = await zygote.call(version)
        assert expected == reply.header["error"]["type"], (code, reply.header)
    version, _ = await zygote.prepare(apart, "def main():\n    return 7\n")
    assert b"7" == (await zygote.call(version)).body


async def test_a_call_cannot_speak_for_the_agent(begin: Begin) -> None:
    """B107: the runner's channel is not in the child, and what it forges is read as its own."""
    zygote = await begin()
    forged = (
        "import os, struct\n"
        "def main():\n"
        '    head = b\'{"op":"result","id":99,"outputs":[["result",1]]}\'\n'
        "    for fd in range(0, 1024):\n"
        "        try:\n"
        "            os.write(fd, struct.pack('!II', len(head), 1) + head + b'9')\n"
        "        except OSError:\n"
        "            pass\n"
        "    return 1\n"
    )
    version, _ = await zygote.prepare(FORK, forged)
    reply = await zygote.call(version)
    assert 99 == reply.header["id"], "told as it came, for the runner to refuse: it asked for 1"
    assert zygote.sandbox.alive()


@both
async def test_what_a_call_leaves_running_is_told(begin: Begin, apart: str) -> None:
    zygote = await begin()
    code = (
        "import os, time\n"
        "def main():\n"
        "    if os.fork() == 0:\n"
        "        if os.fork() == 0:\n"
        "            time.sleep(600)\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
        "    return 1\n"
    )
    version, _ = await zygote.prepare(apart, code)
    assert "children" == (await zygote.call(version)).header["recycle"]


async def test_a_call_that_is_told_to_end_may_clean_up(begin: Begin) -> None:
    zygote = await begin()
    code = (
        "import time\n"
        "def main():\n"
        "    try:\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(600)\n"
        "    finally:\n"
        "        print('cleaned', flush=True)\n"
    )
    version, _ = await zygote.prepare(FORK, code)
    calling = asyncio.create_task(zygote.call(version))
    await until(lambda: "ready" in zygote.sandbox.output_tails()[0])
    killing = asyncio.create_task(zygote.sandbox.kill(grace_s=5))
    assert "cancelled" == (await calling).header["error"]["type"]
    assert "cleaned" in zygote.sandbox.output_tails()[0]
    await zygote.sandbox.kill()
    await killing


async def test_memory_has_its_cap_there_too(begin: Begin, cgroups: object) -> None:
    """B96."""
    if cgroups is None:
        pytest.skip("no control groups here")
    zygote = await begin(Limits(memory_bytes=64 * MIB))
    code = "def main():\n    held = []\n    while True:\n        held.append(bytearray(1 << 22))\n"
    version, _ = await zygote.prepare(FORK, code)
    with pytest.raises(SandboxDied) as died:
        await zygote.call(version)
    assert died.value.oom


async def test_where_an_import_begins_threads_there_is_no_fork(
    begin: Begin, short_home: Path
) -> None:
    environment = short_home / f"env-{uuid.uuid4()}"
    environment.mkdir(mode=0o755)
    module = environment / "threading_module.py"
    module.write_text(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    )
    module.chmod(0o644)
    zygote = await begin(environment=environment)
    _, reply = await zygote.prepare(FORK, "import json\ndef main():\n    return 1\n")
    assert FORK == reply.header["apart"]
    code = "import threading_module\ndef main():\n    return 2\n"
    threaded, reply = await zygote.prepare(FORK, code)
    assert FRESH == reply.header["apart"]
    assert b"2" == (await zygote.call(threaded)).body


async def test_forks_do_not_draw_equal_numbers(begin: Begin, short_home: Path) -> None:
    """A stand-in for numpy's generator, which a fork inherits with its state."""
    environment = short_home / f"env-{uuid.uuid4()}"
    folder = environment / "numpy"
    folder.mkdir(mode=0o755, parents=True)
    environment.chmod(0o755)
    (folder / "__init__.py").write_text("print('imported')\n")
    (folder / "random.py").write_text("import os\nseeds = []\ndef seed():\n    seeds.append(1)\n")
    for file in folder.iterdir():
        file.chmod(0o644)
    zygote = await begin(environment=environment)
    code = (
        "import random, numpy.random\n"
        "def main():\n    return [random.random(), numpy.random.seeds]\n"
    )
    version, _ = await zygote.prepare(FORK, code)
    drawn = []
    for _ in range(3):
        number, seeds = json.loads((await zygote.call(version)).body)
        drawn.append(number)
        assert ([1], "") == (seeds, zygote.sandbox.output_tails()[0])
    assert 3 == len(set(drawn))
