"""The agent on every Python that it is written for; of those that are not here, its grammar."""

from __future__ import annotations

import ast
import json
import marshal
import uuid
from pathlib import Path

import pytest

from services.kit.pythons import VERSIONS, find_pythons
from services.runner import agent
from services.runner.domain.limits import Limits
from services.runner.gateways.sandbox.bare import BareHost
from services.runner.gateways.sandbox.interpreters import prepare_interpreters
from services.runner.gateways.sandbox.port import SandboxSpec
from tests.integration.runner.conftest import INT, Box, load_header

SOURCES = [path.read_text("utf-8") for path in Path(agent.__path__[0]).glob("*.py")]
CODE = """
import asyncio
import dataclasses


@dataclasses.dataclass
class Pair:
    first: int
    second: "list[str]"


async def main(x):
    await asyncio.sleep(0)
    if x < 0:
        raise ValueError("below zero") from KeyError("cause")
    return Pair(x + 1, ["é"])
"""
PAIR = {
    "t": "record",
    "kind": "dataclass",
    "name": "Pair",
    "fields": [
        {"name": "first", "type": INT},
        {"name": "second", "type": {"t": "list", "item": {"t": "str"}}},
    ],
}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_agent_is_in_the_grammar_of_every_version(version: str) -> None:
    """B13: also of those that this machine has not."""
    minor = int(version.split(".")[1])
    for source in SOURCES:
        ast.parse(source, feature_version=(3, minor))


def test_every_module_of_the_agent_is_in_the_file_that_sandboxes_get(tmp_path: Path) -> None:
    """At once, or for later; nothing else is."""
    own = "3.11"
    python = prepare_interpreters([find_pythons()[own]], tmp_path)[own]
    code = marshal.loads(python.agent.read_bytes()[16:])  # made here
    lists = [each for each in code.co_consts if isinstance(each, tuple) and len(each[0]) == 2]
    at_once, later = ([name for name, _ in each] for each in lists)
    modules = {path.stem for path in Path(agent.__path__[0]).glob("*.py")}
    assert sorted(modules - {"__init__", "joined"}) == sorted([*at_once, *later])
    assert {"ahead", "apart", "carried_codecs", "once", "together"} == set(later)
    assert "main" == at_once[-1]


@pytest.mark.parametrize("version", [each for each in VERSIONS if each in find_pythons()])
async def test_the_agent_loads_calls_and_forks_on_every_python_that_is_here(
    version: str, tmp_path: Path
) -> None:
    python = prepare_interpreters([find_pythons()[version]], tmp_path)[version]
    sandbox = await BareHost(cgroups=None).start(
        SandboxSpec(
            sandbox_id=uuid.uuid4(),
            python=python.executable,
            prefix=python.prefix,
            agent=python.agent,
            environment=None,
            limits=Limits(),
        )
    )
    try:
        header = load_header(CODE, {"x": INT}, {"result": PAIR})
        loaded = await sandbox.request(header)
        assert "loaded" == loaded.header["op"], loaded.header
        box = Box(sandbox)
        expected = {"first": 2, "second": ["é"]}
        assert expected == await box.value(x="1")
        error = await box.error(x="-1")
        assert ("ValueError", "ValueError: below zero") == (error["exception"], error["message"])
        for apart in ("fork", "fresh"):
            known = {"op": "prepare", "version": apart, "apart": apart}
            await sandbox.request(header | known)
            call = {"op": "call", "version": apart, "id": 9, "inputs": [["x", 1, []]]}
            reply = await sandbox.request(call | {"output_bytes_max": 4096}, b"1")
            assert expected == json.loads(reply.body), reply.header
            assert sandbox.alive()
    finally:
        await sandbox.kill()
