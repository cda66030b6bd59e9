"""T1: what holds where no namespace can be had."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.kit.pythons import ask
from services.runner.domain.limits import Limits
from services.runner.gateways.sandbox import groups as groups_of_sandboxes
from services.runner.gateways.sandbox.bytecode import compiler
from services.runner.gateways.sandbox.canary import probe
from services.runner.gateways.sandbox.cgroups import CgroupHost
from services.runner.gateways.sandbox.groups import ProcessGroups
from services.runner.gateways.sandbox.interpreters import prepare_interpreters
from services.runner.gateways.sandbox.landlock import LandlockHost
from services.runner.gateways.sandbox.port import Interpreter, Sandbox, SandboxSpec
from services.runner.gateways.sandbox.process import SandboxProcess
from services.standalone.process import ProcessMark
from tests.integration.runner.conftest import Box, load_header

CODE = """
import os, socket, subprocess

def attempt(action):
    try:
        action()
    except OSError as problem:
        return problem.strerror
    return "open"

def main():
    with open(os.path.join(os.environ["TMPDIR"], "mine"), "w") as file:
        file.write("x")
    return {
        "shadow": attempt(lambda: open("/etc/shadow").read()),
        "parent": attempt(lambda: open("/proc/%d/environ" % os.getppid()).read()),
        "write": attempt(lambda: open("/usr/mine", "w")),
        "internet": attempt(lambda: socket.socket()),
        "unix": attempt(lambda: socket.socket(socket.AF_UNIX)),
        "session": attempt(os.setsid),
        "child": subprocess.run(["/bin/echo", "hi"], capture_output=True).stdout.decode(),
    }
"""

BOMB = """
import os, time

def main():
    made = 0
    try:
        while made < 100:
            if os.fork() == 0:
                time.sleep(600)
            made += 1
    except OSError:
        pass
    return made
"""


ORPHAN = """
import os, time

def main():
    read, write = os.pipe()
    if os.fork() == 0:
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
        os.write(write, b"%d" % pid)
        os._exit(0)
    os.wait()
    return int(os.read(read, 100))
"""

RUNNER = f"""
import asyncio, os, signal, sys
from pathlib import Path
from tests.integration.runner.test_landlock import *

async def main():
    boxes, groups, version, python, prefix, agent = sys.argv[1:]
    host = LandlockHost(Path(boxes), cgroups=None, groups=ProcessGroups(Path(groups)))
    interpreter = Interpreter(version, Path(python), Path(prefix), Path(agent))
    sandbox = await start(host, interpreter, Limits())
    await sandbox.request(load_header({ORPHAN!r}))
    print(await Box(sandbox).value(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.fixture
def boxes() -> Iterator[Path]:
    """A folder that other users may enter, as root's sandboxes are."""
    folder = Path(tempfile.mkdtemp(prefix="qft-", dir="/tmp"))
    folder.chmod(0o711)
    yield folder / "boxes"
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def groups(tmp_path: Path) -> ProcessGroups:
    return ProcessGroups(tmp_path / "groups")


@pytest.fixture(scope="module")
def interpreter(runner_home: Path) -> Interpreter:
    """The system's, which every user may run: one in root's own folder is refused."""
    system = ask(Path("/usr/bin/python3"))
    if system is None:
        pytest.skip("the system has no Python of its own")
    return prepare_interpreters([system], runner_home / "agent")[system.version]


async def start(host: LandlockHost, interpreter: Interpreter, limits: Limits) -> Sandbox:
    return await host.start(
        SandboxSpec(
            sandbox_id=uuid.uuid4(),
            python=interpreter.executable,
            prefix=interpreter.prefix,
            agent=interpreter.agent,
            environment=None,
            limits=limits,
        )
    )


async def test_the_canary_finds_nothing_open(
    interpreter: Interpreter, boxes: Path, groups: ProcessGroups
) -> None:
    """E15: also as root in a container, where `setuid(0)` would be no change at all."""
    found = await probe(LandlockHost(boxes, cgroups=None, groups=groups), interpreter)
    assert [] == found.open
    assert "T1" == found.tier


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a user for each sandbox")
async def test_without_control_groups_the_sandboxes_user_counts_its_processes(
    interpreter: Interpreter, boxes: Path, groups: ProcessGroups
) -> None:
    """B95 at T1."""
    host = LandlockHost(boxes, cgroups=None, groups=groups)
    first = await start(host, interpreter, Limits(processes=8))
    other = await start(host, interpreter, Limits(processes=8))
    try:
        for sandbox in (first, other):
            loaded = await sandbox.request(load_header(BOMB))
            assert "loaded" == loaded.header["op"], loaded.header
            assert 7 == await Box(sandbox).value()
        left = _of_group(first)
        assert len(left) == 8
    finally:
        await first.kill()
        await other.kill()
    # Killed is killed; that the kernel and the first process have put them away takes a moment.
    async with asyncio.timeout(30):
        while [pid for pid in left if ProcessMark.of(pid)]:  # noqa: ASYNC110  # the kernel
            await asyncio.sleep(0.01)


def _of_group(sandbox: Sandbox) -> list[int]:
    assert isinstance(sandbox, SandboxProcess)
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == sandbox.pid:
                found.append(int(folder.name))
        except ProcessLookupError:
            continue
    return found


async def test_an_environment_is_compiled_at_this_tier_too(
    interpreter: Interpreter, boxes: Path, groups: ProcessGroups
) -> None:
    """By the same means, for there are no others."""
    folder = boxes.parent / "environment"
    folder.mkdir()
    (folder / "module.py").write_text("x = 1\n")
    host = LandlockHost(boxes, cgroups=None, groups=groups)
    async with compiler(host, interpreter, folder) as compile_modules:
        await compile_modules()
    [compiled] = folder.rglob("*.pyc")
    assert (os.geteuid(), 0o644) == (compiled.stat().st_uid, compiled.stat().st_mode & 0o777)
    assert {"environment"} == {path.name for path in boxes.parent.iterdir()} - {"boxes"}


async def test_files_sockets_and_sessions_are_out_of_reach(
    interpreter: Interpreter, cgroups: CgroupHost | None, boxes: Path, groups: ProcessGroups
) -> None:
    """E15, the fallback; a filter in the kernel and not in the language."""
    sandbox = await start(
        LandlockHost(boxes, cgroups=cgroups, groups=groups), interpreter, Limits()
    )
    try:
        loaded = await sandbox.request(load_header(CODE))
        assert "loaded" == loaded.header["op"], loaded.header
        reply = await Box(sandbox).call()
        found = json.loads(reply.body)
        assert "" == reply.header["recycle"]
    finally:
        await sandbox.kill()
    assert "hi\n" == found.pop("child")
    assert set(found.values()) <= {"Permission denied", "Operation not permitted"}, found
    async with asyncio.timeout(30):
        while list(boxes.iterdir()):  # noqa: ASYNC110, ASYNC240 - a thread removes
            await asyncio.sleep(0.01)


async def test_what_a_killed_runner_left_without_control_groups_is_reaped(
    interpreter: Interpreter, boxes: Path, tmp_path: Path
) -> None:
    """I19, R31 at T1: the child of a child, whose parents are gone; and nobody else's group."""
    records = tmp_path / "groups"
    given = (interpreter.version, interpreter.executable, interpreter.prefix, interpreter.agent)
    runner = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", RUNNER, str(boxes), str(records), *map(str, given)],
        capture_output=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert -signal.SIGKILL == runner.returncode, runner.stderr
    orphan = ProcessMark.of(int(runner.stdout))
    assert orphan is not None
    [record] = records.iterdir()
    kept = json.loads(record.read_bytes())
    sleeping = ["/bin/sleep", "600"]
    with subprocess.Popen(sleeping, start_new_session=True) as other:  # noqa: ASYNC220
        (records / "other").write_text(json.dumps({**kept, "group": other.pid}))
        assert 1 == ProcessGroups(records).reap()
        async with asyncio.timeout(30):
            while orphan.is_alive():  # noqa: ASYNC110 - a process ends
                await asyncio.sleep(0.01)
        assert other.poll() is None
        other.kill()
    assert [] == list(records.iterdir())


def test_a_process_that_ends_while_its_group_is_looked_at_does_not_save_the_others() -> None:
    """R31: whoever forks without a pause always has one that does."""
    with subprocess.Popen(["/bin/sleep", "600"], start_new_session=True) as brief:
        seen = groups_of_sandboxes._process(brief.pid)
        assert seen is not None
        record = groups_of_sandboxes._Record(
            group=brief.pid,
            started_ticks=seen.started_ticks,
            user=os.getuid(),
            boot=Path("/proc/sys/kernel/random/boot_id").read_text(),
        )
        assert False is groups_of_sandboxes._is_of(record, seen)  # it has no filter
        brief.kill()
    assert None is groups_of_sandboxes._is_of(record, seen)
