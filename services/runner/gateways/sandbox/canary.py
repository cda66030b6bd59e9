"""The canary: attacks its own sandbox, so that the tier is tested and not assumed."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from services.runner.domain.limits import Limits, ProbeCheck, Tier
from services.runner.gateways.sandbox.port import (
    Interpreter,
    SandboxDied,
    SandboxHost,
    SandboxSpec,
)

# Also runs on Python 3.9. Each attack returns whether the sandbox held, and how or what was open.
_CODE: Final = """
import ctypes
import os
import socket


def attack(action):
    try:
        answer = action()
    except (OSError, ValueError) as refused:
        return [True, type(refused).__name__]
    return [False, "open" if answer is None else str(answer)[:100]]


def read(path):
    def action():
        with open(path, "rb") as file:
            found = file.read(64)
        if not found:
            raise ValueError("empty")
        return "%d bytes" % len(found)
    return action


def write(path):
    def action():
        with open(path, "r+b"):
            return None
    return action


def connect(family, address):
    def action():
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(0.2)
            connection.connect(address)
    return action


def unshare(flags):
    def action():
        library = ctypes.CDLL(None, use_errno=True)
        if library.unshare(flags) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
    return action


def other_processes():
    own = {1, 2, os.getpid()}
    others = [name for name in os.listdir("/proc") if name.isdigit() and int(name) not in own]
    if not others:
        raise ValueError("none")
    return len(others)


def privileges():
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    # Asked of the kernel, since not every kernel's file tells it.
    none_to_come = ctypes.CDLL(None).prctl(39, 0, 0, 0, 0) == 1
    if int(status["CapEff"], 16) == 0 and none_to_come:
        raise ValueError("none")
    return status["CapEff"]


def filtered():
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    if status["Seccomp"].strip() == "2":
        raise ValueError("filtered")


def become_root():
    os.setuid(0)


def init_environment():
    if os.getpid() == 1:  # in a container the agent is the first process: there is no other's
        raise ValueError("its own")
    return read("/proc/1/environ")()


def environment():
    secrets = [name for name in os.environ if "QFLOW" in name or "TOKEN" in name or "PASS" in name]
    if not secrets:
        raise ValueError("none")
    return secrets


def main() -> dict:
    return {
        "shadow": attack(read("/etc/shadow")),
        "init environment": attack(init_environment),
        "kernel settings": attack(write("/proc/sys/kernel/core_pattern")),
        "system folder": attack(lambda: os.close(os.open("/usr/qflow", os.O_CREAT | os.O_WRONLY))),
        "environment": attack(environment),
        "other processes": attack(other_processes),
        "privileges": attack(privileges),
        "system call filter": attack(filtered),
        "user root": attack(become_root),
        "user namespace": attack(unshare(0x10000000)),
        "internet": attack(connect(socket.AF_INET, ("169.254.169.254", 80))),
        "loopback": attack(connect(socket.AF_INET, ("127.0.0.1", 5432))),
        "internet v6": attack(connect(socket.AF_INET6, ("::1", 80))),
    }
"""
_LOAD: Final = {
    "op": "load",
    "code": _CODE,
    "main": "main",
    "inputs": [],
    "outputs": [{"name": "result", "type": {"t": "any"}}],
}
_CALL: Final = {"op": "call", "id": 0, "inputs": [], "output_bytes_max": 65536}


@dataclass(frozen=True, slots=True)
class Probe:
    """The result of the canary: the tier that holds, and the outcome of each attack."""

    tier: Tier
    checks: Sequence[ProbeCheck]

    @property
    def open(self) -> list[str]:
        """Descriptions of the attacks that got through."""
        return [f"{each.name}: {each.detail}" for each in self.checks if not each.held]


async def probe(host: SandboxHost, interpreter: Interpreter) -> Probe:
    """Attack a sandbox of this host once; any attack that gets through lowers the tier to T0."""
    spec = SandboxSpec(
        sandbox_id=uuid.uuid4(),
        python=interpreter.executable,
        prefix=interpreter.prefix,
        agent=interpreter.agent,
        environment=None,
        limits=Limits(),
    )
    try:
        sandbox = await host.start(spec)
    except SandboxDied as problem:
        return _failed(f"the sandbox does not start: {problem}")
    try:
        loaded = await sandbox.request(_LOAD)
        if loaded.header.get("op") != "loaded":
            return _failed(f"it does not load: {loaded.header.get('error')}")
        answer = await sandbox.request(_CALL)
        found = msgspec.json.decode(answer.body or b"{}", type=dict[str, tuple[bool, str]])
    except (SandboxDied, msgspec.DecodeError) as problem:
        return _failed(f"it died: {problem}")
    finally:
        await sandbox.kill()
    checks = [ProbeCheck(attack, held, detail) for attack, (held, detail) in found.items()]
    held = bool(checks) and all(each.held for each in checks)
    return Probe(host.tier if held else Tier.T0, checks)


def _failed(detail: str) -> Probe:
    return Probe(Tier.T0, [ProbeCheck("canary", held=False, detail=detail)])
