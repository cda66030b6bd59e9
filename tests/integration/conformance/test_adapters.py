"""What every adapter does, whatever its walls are made of."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from services.runner.domain.limits import MIB, Limits, Tier, meets
from services.runner.gateways.sandbox.canary import probe
from services.runner.gateways.sandbox.port import Interpreter, SandboxDied, SandboxHost, SandboxSpec
from tests.integration.conformance.conftest import ADAPTERS, Start

INT = {"t": "int"}

pytestmark = pytest.mark.parametrize("host", ADAPTERS, indirect=True)


async def test_a_result_comes_back_and_the_sandbox_serves_again(start: Start) -> None:
    box = await start("def main(x):\n    return x + 1\n", inputs={"x": INT})
    assert [2, 3, 4] == [await box.value(x=str(x)) for x in (1, 2, 3)]


async def test_an_error_names_its_type_and_the_frames_of_the_users_code(start: Start) -> None:
    box = await start("def main():\n    return 1 / 0\n")
    error = await box.error()
    assert ("user_error", "ZeroDivisionError") == (error["type"], error["exception"])
    assert "return 1 / 0" in error["traceback"]
    assert box.sandbox.alive()


async def test_the_end_of_the_process_is_told_with_its_status(start: Start) -> None:
    """B107."""
    box = await start("import os\ndef main():\n    os._exit(7)\n")
    with pytest.raises(SandboxDied, match="exit status 7") as died:
        await box.call()
    assert (7, False) == (died.value.status, died.value.oom)
    assert not box.sandbox.alive()


async def test_a_kill_ends_what_ignores_signals_and_forks_twice(start: Start) -> None:
    """B97, B98, R30."""
    box = await start(
        "import os, signal, time\n"
        "def main():\n"
        "    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):\n"
        "        signal.signal(number, signal.SIG_IGN)\n"
        "    if os.fork() == 0:\n"
        "        if os.fork() == 0:\n"
        "            while True: time.sleep(1)\n"
        "        os._exit(0)\n"
        "    print('ready', flush=True)\n"
        "    while True: time.sleep(1)\n"
    )
    calling = asyncio.create_task(box.call())
    await until(lambda: "ready" in box.sandbox.output_tails()[0])
    await box.sandbox.kill(grace_s=0.2)
    assert box.sandbox.ended.done()
    with pytest.raises(SandboxDied, match="stopped"):
        await calling


async def test_a_call_that_is_told_to_end_may_clean_up_in_its_grace(start: Start) -> None:
    """G5."""
    box = await start(
        "import time\n"
        "def main():\n"
        "    try:\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(600)\n"
        "    finally:\n"
        "        print('cleaned', flush=True)\n"
    )
    calling = asyncio.create_task(box.call())
    await until(lambda: "ready" in box.sandbox.output_tails()[0])
    await box.sandbox.kill(grace_s=5)
    reply = await calling
    assert "cancelled" == reply.header["error"]["type"]
    assert "cleaned" in box.sandbox.output_tails()[0]


async def test_memory_has_a_cap_and_the_neighbour_goes_on(
    start: Start, host: SandboxHost, cgroups: object
) -> None:
    """B96, F29."""
    if cgroups is None and not meets(host.tier, Tier.T3):
        pytest.skip("no control groups here: this tier caps no memory")
    code = "def main():\n    held = []\n    while True:\n        held.append(bytearray(1 << 22))\n"
    neighbour = await start("def main(x):\n    return x\n", inputs={"x": INT})
    box = await start(code, limits=Limits(memory_bytes=64 * MIB))
    with pytest.raises(SandboxDied) as died:
        await box.call()
    assert died.value.oom
    assert 5 == await neighbour.value(x="5")


async def test_a_fork_bomb_meets_its_limit_and_the_neighbour_goes_on(
    start: Start, host: SandboxHost, cgroups: object
) -> None:
    """B95."""
    if cgroups is None and not meets(host.tier, Tier.T3):
        pytest.skip("no control groups here: this tier counts no processes")
    neighbour = await start("def main(x):\n    return x\n", inputs={"x": INT})
    box = await start(
        "import os, time\n"
        "def main():\n"
        "    made = 0\n"
        "    try:\n"
        "        while made < 1000:\n"
        "            if os.fork() == 0:\n"
        "                time.sleep(600)\n"
        "            made += 1\n"
        "    except OSError:\n"
        "        pass\n"
        "    return made\n",
        limits=Limits(processes=24),
    )
    if host.tier is Tier.T4:
        # What is short there is its kernel's own threads, without which that ends.
        with contextlib.suppress(SandboxDied):
            assert await box.value() < 24 + 128
    else:
        assert await box.value() < 24
    assert 1 == await neighbour.value(x="1")


async def test_what_is_printed_is_kept_at_its_end_and_is_there_with_the_answer(
    start: Start,
) -> None:
    """B99."""
    box = await start(
        "import os, sys\n"
        "def main():\n"
        "    for _ in range(50):\n"
        "        os.write(1, b'\\x00\\xff' * 20000)\n"
        "    print('the end')\n"
        "    print('of errors', file=sys.stderr)\n"
        "    return 1\n"
    )
    assert 1 == await box.value()
    stdout, stderr = box.sandbox.output_tails()
    assert stdout.startswith("[")
    assert stdout.endswith("the end\n")
    assert "of errors\n" == stderr


async def test_a_call_that_leaves_much_in_its_temporary_room_is_noticed(
    start: Start, host: SandboxHost
) -> None:
    """B100: else calls that each keep to the limit would fail of what others left."""
    if host.tier not in {Tier.T2, Tier.T3}:
        pytest.skip("T1's room is looked at from outside, and a kernel of its own may not tell it")
    code = (
        "import os, tempfile\n"
        "def main(x):\n"
        "    place = tempfile.mkstemp()[1]\n"
        "    with open(place, 'wb') as file: file.write(bytes(x))\n"
        "    return x\n"
    )
    box = await start(code, inputs={"x": INT}, limits=Limits(temporary_bytes=16 * MIB))
    for size, noticed in ((MIB, ""), (3 * MIB, "temporary files")):
        reply = await box.call({"x": str(size)})
        assert (str(size).encode(), noticed) == (reply.body, reply.header["recycle"])


async def test_short_calls_that_each_leave_a_little_are_noticed_when_it_is_too_much(
    start: Start, host: SandboxHost
) -> None:
    """The kernel is not asked after each, and yet the first that goes past the eighth is told."""
    if host.tier not in {Tier.T2, Tier.T3}:
        pytest.skip("T1's room is looked at from outside, and a kernel of its own may not tell it")
    code = (
        "def main(x):\n"
        "    with open('/dev/shm/%d' % x, 'wb') as file: file.write(bytes(100 << 10))\n"
        "    return x\n"
    )
    box = await start(code, inputs={"x": INT}, limits=Limits(temporary_bytes=16 * MIB))
    noticed = [(await box.call({"x": str(nth)})).header["recycle"] for nth in range(21)]
    assert [*[""] * 20, "temporary files"] == noticed


async def test_nothing_that_is_printed_is_taken_for_an_answer(start: Start) -> None:
    """B107: frames on every descriptor that user code finds by number."""
    box = await start(
        "import os, struct\n"
        "def main(x):\n"
        '    forged = b\'{"op":"result","id":1,"outputs":[["result",1]]}\'\n'
        "    for fd in range(0, 64):\n"
        "        try:\n"
        "            os.write(fd, struct.pack('!II', len(forged), 1) + forged + b'9')\n"
        "        except OSError:\n"
        "            pass\n"
        "    return x\n",
        inputs={"x": INT},
    )
    assert 4 == await box.value(x="4")


async def test_a_large_input_and_output_come_through_whole(start: Start) -> None:
    box = await start("def main(x):\n    return x[::-1]\n", inputs={"x": {"t": "str"}})
    text = "a" * 1_500_000 + "b"
    assert text[::-1] == await box.value(x=f'"{text}"')


async def test_packages_are_found_read_only(start: Start, short_home: Path) -> None:
    environment = short_home / f"env-{uuid.uuid4()}"
    environment.mkdir(mode=0o755)
    (environment / "answers.py").write_text("ANSWER = 42\n")
    (environment / "answers.py").chmod(0o644)
    box = await start(
        "import answers\ndef main():\n    return answers.ANSWER\n", environment=environment
    )
    assert 42 == await box.value()


async def test_names_tell_which_sandbox_it_is_and_the_host_finds_and_ends_it_by_its_id(
    host: SandboxHost, start: Start, cgroups: object
) -> None:
    box = await start("def main():\n    return 1\n")
    name = str(box.sandbox.spec.sandbox_id)
    assert box.sandbox.name.partition(":")[0] in {"process", "landlock", "bubblewrap", "docker"}
    assert box.sandbox.name.endswith(name)
    if cgroups is None and host.tier in {Tier.T0, Tier.T2}:
        return  # nothing outlives the runner there, and nothing is to be found
    assert box.sandbox.spec.sandbox_id in await host.living()
    await host.remove(box.sandbox.spec.sandbox_id)
    async with asyncio.timeout(30):
        await box.sandbox.ended
    await box.sandbox.kill()
    assert box.sandbox.spec.sandbox_id not in await host.living()


async def test_the_tier_is_proven_by_attacks_of_its_own(
    host: SandboxHost, python: Interpreter, start: Start
) -> None:
    """E15, X30-X34, X37, X45: no network, files, processes or rights of this machine."""
    found = await probe(host, python)
    box = await start("def main():\n    return 1\n")
    assert host.tier == box.sandbox.tier
    if host.tier is Tier.T0:
        assert [] != found.open, "a bare process holds nothing, and says so"
    else:
        assert ([], host.tier) == (found.open, found.tier)


async def test_what_cannot_start_says_why_and_leaves_nothing(
    host: SandboxHost, python: Interpreter
) -> None:
    spec = SandboxSpec(
        sandbox_id=uuid.uuid4(),
        python=Path("/nowhere/python"),
        prefix=python.prefix,
        agent=python.agent,
        environment=None,
        limits=Limits(),
    )
    with pytest.raises(SandboxDied):
        await host.start(spec)
    assert spec.sandbox_id not in await host.living()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - a pipe tells
            await asyncio.sleep(0.01)
