"""Hostile code at each tier that this machine has: what it reaches, and what is left of it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from services.runner.domain.limits import Limits, Tier
from services.runner.gateways.docker.container import DEATH_TIMEOUT_S
from services.runner.gateways.sandbox.port import SandboxDied
from services.runner.gateways.sandbox.process import _DEATH_TIMEOUT_S, SandboxProcess
from services.runner.settings import Settings
from tests.integration.runner.conftest import INT, Box, Start


async def test_rights_are_given_up_for_good(start_at: Start) -> None:
    """X33, X34: no other user, no capability, no program that would give any."""
    box = await start_at(
        "import os\n"
        "def main():\n"
        "    out = []\n"
        "    for change in (os.setuid, os.setgid):\n"
        "        try:\n"
        "            change(0)\n"
        "            out.append('changed')\n"
        "        except OSError:\n"
        "            pass\n"
        "    status = dict(l.split(':', 1) for l in open('/proc/self/status') if ':' in l)\n"
        "    wanted = ('CapEff', 'CapPrm', 'CapBnd', 'NoNewPrivs', 'Seccomp')\n"
        "    return [out, [status[name].strip() for name in wanted]]\n"
    )
    changed, (effective, permitted, _bounding, no_new, filtered) = await box.value()
    assert [] == changed
    assert {0} == {int(effective, 16), int(permitted, 16)}
    assert ["1", "2"] == [no_new, filtered]


async def test_no_open_file_of_the_runners_is_inherited(start_at: Start) -> None:
    """X39: pipes, the channel, and what the agent asks the kernel by."""
    box = await start_at(
        "import os\n"
        "def main():\n"
        "    found = []\n"
        "    for name in os.listdir('/proc/self/fd'):\n"
        "        try:\n"
        "            found.append(os.readlink('/proc/self/fd/' + name))\n"
        "        except OSError:\n"
        "            pass\n"
        "    return found\n"
    )
    kinds = {each.split(":")[0] for each in await box.value()}
    known = {"pipe", "socket", "/dev/null", "/proc/loadavg", "anon_inode"}
    assert {each for each in kinds if not each.startswith("/proc/")} <= known
    # Of /proc, its own and the load alone.
    assert {each.split("/")[-1] for each in kinds if each.startswith("/proc/")} <= {
        *("loadavg", "clear_refs", "fd"),
    }


async def test_the_runner_is_neither_traced_nor_signalled(start_at: Start) -> None:
    """X43."""
    box = await start_at(
        "import ctypes, os\n"
        "def main(pid):\n"
        "    libc = ctypes.CDLL(None, use_errno=True)\n"
        "    out = [libc.ptrace(16, pid, 0, 0)]\n"
        "    for victim in (pid, os.getppid()):\n"
        "        try:\n"
        "            os.kill(victim, 0)\n"
        "            out.append(0 if victim == pid else -1)\n"
        "        except OSError:\n"
        "            out.append(-1)\n"
        "    try:\n"
        "        open('/proc/%d/mem' % pid, 'rb').close()\n"
        "        out.append(0)\n"
        "    except OSError:\n"
        "        out.append(-1)\n"
        "    return out\n",
        inputs={"pid": INT},
    )
    assert [-1, -1, -1, -1] == await box.value(pid=str(os.getpid()))


def test_what_a_kill_waits_for_fits_into_seven_seconds() -> None:
    """E7: by its own clocks: the tests here see only that it is over when it has waited so long."""
    grace_s = Settings.from_env(
        {
            "QFLOW_HOME": "/nowhere",
            "QFLOW_RUNNER_DATABASE_URL": "postgresql://one",
            "QFLOW_RUNNER_ENGINE_DATABASE_URL": "postgresql://two",
            "QFLOW_SERVICE_TOKEN": "three",
        }
    ).grace_s
    assert grace_s + max(_DEATH_TIMEOUT_S, DEATH_TIMEOUT_S) < 7


async def test_a_tree_that_hides_and_ignores_signals_is_gone_in_time(start_at: Start) -> None:
    """B97, B98, G5, E7, I19, R30: also what left the session, where the filter lets it."""
    box = await start_at(
        "import os, signal, time\n"
        "def hide():\n"
        "    for number in range(1, 32):\n"
        "        try: signal.signal(number, signal.SIG_IGN)\n"
        "        except (OSError, ValueError): pass\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))\n"
        "def main():\n"
        "    hide()\n"
        "    for _ in range(3):\n"
        "        if os.fork() == 0:\n"
        "            try: os.setsid()\n"
        "            except OSError: pass\n"
        "            if os.fork() == 0:\n"
        "                while True: time.sleep(0.01)\n"
        "            os._exit(0)\n"
        "    print('ready', flush=True)\n"
        "    while True: pass\n"
    )
    calling = asyncio.create_task(box.call())
    await _ready(box)
    assert isinstance(box.sandbox, SandboxProcess)
    assert box.sandbox._cgroup is not None
    pids = box.sandbox._cgroup.processes()
    assert len(pids) >= 4
    await box.sandbox.kill(grace_s=0.5)
    assert box.sandbox.ended.done()
    with pytest.raises(SandboxDied):
        await calling
    async with asyncio.timeout(30):  # out of the group, and over in a moment
        while [pid for pid in pids if not _is_dead(pid)]:  # noqa: ASYNC110 - the kernel's work
            await asyncio.sleep(0.01)


async def test_what_is_in_c_code_and_hears_no_signal_is_ended(start_at: Start) -> None:
    """B112: it holds the interpreter's lock, so that no handler of Python's runs."""
    box = await start_at(
        "import itertools\ndef main():\n"
        "    print('ready', flush=True)\n"
        "    return sum(itertools.repeat(0))\n"
    )
    calling = asyncio.create_task(box.call())
    await _ready(box)
    await box.sandbox.kill(grace_s=0.3)
    assert box.sandbox.ended.done()
    with pytest.raises(SandboxDied, match="stopped"):
        await calling


async def test_the_time_of_grace_is_the_codes_to_clean_up(start_at: Start) -> None:
    """G5: SIGTERM ends the call as an exception that `finally` sees."""
    box = await start_at(
        "import time\n"
        "def main():\n"
        "    try:\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(600)\n"
        "    finally:\n"
        "        print('cleaned up')\n"
    )
    calling = asyncio.create_task(box.error())
    await _ready(box)
    await box.sandbox.kill(grace_s=600)  # it does not wait for those that end by themselves
    assert "cancelled" == (await calling)["type"]
    assert "cleaned up" in box.sandbox.output_tails()[0]


async def test_a_flood_of_forged_lines_ends_the_sandbox_and_not_its_neighbour(
    start_at: Start,
) -> None:
    """B99: past what the agent itself would tell, the channel is not listened to."""
    box = await start_at(
        "import os, struct, time\n"
        "def main():\n"
        '    body = b\'{"op":"log","s":1}\'\n'
        "    frame = struct.pack('!II', len(body), 0) + body\n"
        "    for number in range(200, 210):\n"
        "        try:\n"
        "            while True: os.write(number, frame * 500)\n"
        "        except OSError:\n"
        "            pass\n"
        "    time.sleep(600)\n"
    )
    neighbour = await start_at("def main(x):\n    return x\n", inputs={"x": INT})
    with pytest.raises(SandboxDied, match="told more than allowed"):
        await box.call()
    assert 3 == await neighbour.value(x="3")


async def test_a_million_files_meet_the_end_of_the_sandboxs_own_room(start_at: Start) -> None:
    """B100, X38: many files, and one that would only look large; the neighbour writes on."""
    limits = Limits(temporary_bytes=4 << 20, memory_bytes=64 << 20)
    box = await start_at(
        "import os, time\n"
        "def main():\n"
        "    own, until = os.environ['TMPDIR'], time.monotonic() + 20\n"
        "    with open(own + '/sparse', 'wb') as file:\n"
        "        try:\n"
        "            os.truncate(file.fileno(), 1 << 40)\n"
        "            return 'a terabyte'\n"
        "        except OSError: pass\n"
        "    try:\n"
        "        for at in range(1_000_000):\n"
        "            with open('%s/%d' % (own, at), 'wb') as file: file.write(b'x' * 4096)\n"
        "            if at > 2000: time.sleep(0.001)\n"
        "            if time.monotonic() > until: return 'no end'\n"
        "    except OSError as problem:\n"
        "        return 'full'\n",
        limits=limits,
    )
    neighbour = await start_at(
        "import os\ndef main():\n"
        "    with open(os.environ['TMPDIR'] + '/mine', 'w') as file: return file.write('x')\n"
    )
    if (
        box.sandbox.tier is Tier.T1
    ):  # its folder is one of the machine's, and looked at from outside
        with pytest.raises(SandboxDied, match="more in its temporary folder than the limit, 4 MiB"):
            await box.call()
    else:
        assert "full" == await box.value()
    assert 1 == await neighbour.value()


async def test_what_is_deleted_and_open_takes_of_the_room_too(start_at: Start) -> None:
    """B100: no name in the folder, and the disk is taken all the same."""
    box = await start_at(
        "import os, time\n"
        "def main():\n"
        "    held = []\n"
        "    try:\n"
        "        for at in range(20):\n"
        "            held.append(open(os.environ['TMPDIR'] + '/gone', 'wb', buffering=0))\n"
        "            os.unlink(held[-1].name)\n"
        "            for _ in range(3): held[-1].write(b'x' * (1 << 20))\n"
        "    except OSError:\n"
        "        return 'full'\n"
        "    time.sleep(20)\n"
        "    return 'no end'\n",
        limits=Limits(temporary_bytes=4 << 20),
    )
    if box.sandbox.tier is Tier.T1:
        with pytest.raises(SandboxDied, match="more in its temporary folder"):
            await box.call()
    else:
        assert "full" == await box.value()


@pytest.mark.parametrize("made", ["pipe", "socket", "folder", "device", "a device of the machine"])
async def test_only_a_regular_file_is_taken_as_an_output(start_at: Start, made: str) -> None:
    """X36: what would hold up whoever reads it, or never end."""
    box = await start_at(
        "import os, pathlib, socket, stat\n"
        "def main(made):\n"
        "    place = os.environ['TMPDIR'] + '/made'\n"
        "    if made == 'pipe': os.mkfifo(place)\n"
        "    elif made == 'socket': os.mknod(place, stat.S_IFSOCK | 0o600)\n"
        "    elif made == 'folder': os.mkdir(place)\n"
        "    elif made == 'device': os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, 5))\n"
        "    else: place = '/dev/zero'\n"
        "    return pathlib.Path(place)\n",
        inputs={"made": {"t": "str"}},
        outputs={"result": {"t": "file"}},
    )
    async with asyncio.timeout(30):
        error = await box.error(made=f'"{made}"')
    if made == "device":
        assert ("user_error", "PermissionError") == (error["type"], error["exception"])
    else:
        assert "serialization_error" == error["type"], error
    again = await box.error(made='"folder"')
    assert again["type"] in {"serialization_error", "user_error"}, "it serves on"


async def test_a_link_that_is_changed_meanwhile_leads_nowhere_but_inside(
    start_at: Start, folder: Path
) -> None:
    """X35: what leaves is an open file, and no name of the sandbox's is followed outside."""
    secret = folder / "secret"
    secret.write_text("of the machine")
    secret.chmod(0o644)
    box = await start_at(
        "import os, pathlib, threading\n"
        "def main(secret):\n"
        "    own = os.environ['TMPDIR']\n"
        "    with open(own + '/mine', 'w') as file: file.write('mine')\n"
        "    link, stop = own + '/link', []\n"
        "    def change():\n"
        "        while not stop:\n"
        "            for to in (secret, own + '/mine'):\n"
        "                os.symlink(to, own + '/next')\n"
        "                os.replace(own + '/next', link)\n"
        "    os.symlink(own + '/mine', link)\n"
        "    thread = threading.Thread(target=change)\n"
        "    thread.start()\n"
        "    found = set()\n"
        "    for _ in range(2000):\n"
        "        try:\n"
        "            with open(link) as file: found.add(file.read())\n"
        "        except OSError: pass\n"
        "    stop.append(1)\n"
        "    thread.join()\n"
        "    return sorted(found)\n",
        inputs={"secret": {"t": "str"}},
    )
    assert await box.value(secret=f'"{secret}"') in (["mine"], [])
    leaving = await start_at(
        "import os, pathlib\n"
        "def main(secret):\n"
        "    link = os.environ['TMPDIR'] + '/link'\n"
        "    os.symlink(secret, link)\n"
        "    return pathlib.Path(link)\n",
        outputs={"result": {"t": "file"}},
        inputs={"secret": {"t": "str"}},
    )
    error = await leaving.error(secret=f'"{secret}"')
    assert "serialization_error" == error["type"]
    assert "cannot be opened" in error["message"]


async def test_nothing_can_be_typed_into_a_terminal(start_at: Start) -> None:
    """X41: TIOCSTI and TIOCLINUX would speak for whoever sits there."""
    box = await start_at(
        "import fcntl, os\n"
        "def main():\n"
        "    done = []\n"
        "    places = [0, 1, 2]\n"
        "    for name in ('/dev/tty', '/dev/console', '/dev/ptmx'):\n"
        "        try: places.append(os.open(name, os.O_RDWR | os.O_NOCTTY))\n"
        "        except OSError: pass\n"
        "    for place in places:\n"
        "        for request, given in ((0x5412, b'x'), (0x541C, b'\\x03')):\n"
        "            try:\n"
        "                fcntl.ioctl(place, request, given)\n"
        "                done.append([place, request])\n"
        "            except OSError as problem:\n"
        "                done.append(problem.errno)\n"
        "    return done\n"
    )
    # Refused by the filter, whatever the descriptor is.
    assert {1} == set(await box.value())


async def _ready(box: Box) -> None:
    async with asyncio.timeout(30):
        while "ready" not in box.sandbox.output_tails()[0]:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)


def _is_dead(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return True
    return state in "ZX"
