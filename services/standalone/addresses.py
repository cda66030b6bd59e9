"""The addresses at which the four services listen and are reached."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from services.standalone import tls_files
from services.standalone.process import StandaloneError

SERVICES: Final = ("registry", "orchestrator", "runner", "telemetry")
_PORT_BASE: Final = 7100
_METRICS_OFFSET: Final = 10  # offset of a service's metrics port
_PORT_MAX: Final = 65535

Ports: TypeAlias = Literal["fixed", "auto"]


class PortTakenError(StandaloneError):
    """A required port is used by another program."""

    def __init__(self, message: str, *, port: str) -> None:
        super().__init__(message)
        self.port = port


@dataclass(frozen=True, slots=True)
class Addresses:
    """The listen addresses, as host:port or unix:path, of the services and for runners."""

    listen: Mapping[str, str]
    attach: str
    metrics: Mapping[str, str]  # host:port
    # The runner's address for other services, which authenticate each other by TLS.
    runner_internal: str | None = None

    def client(self, service: str) -> str:
        """Return the address that a client on this machine connects to."""
        listen = self.listen[service]
        if listen.startswith("unix:"):
            return listen
        host, _, port = listen.rpartition(":")
        reachable = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "*": "127.0.0.1"}  # noqa: S104
        return f"{reachable.get(host, host)}:{port}"

    def env(self, service: str) -> dict[str, str]:
        """Return the settings of one service: its listen addresses, and all services' addresses."""
        addresses = {f"QFLOW_{name.upper()}_ADDRESS": self.client(name) for name in SERVICES}
        own = {
            f"QFLOW_{service.upper()}_LISTEN": self.listen[service],
            f"QFLOW_{service.upper()}_METRICS_LISTEN": self.metrics[service],
        }
        if service == "orchestrator":
            own["QFLOW_ORCHESTRATOR_ATTACH_LISTEN"] = self.attach
        if self.runner_internal is not None:
            addresses["QFLOW_RUNNER_INTERNAL_ADDRESS"] = self.runner_internal
            if service == "runner":
                own["QFLOW_RUNNER_INTERNAL_LISTEN"] = self.runner_internal
        return {**addresses, **own, "QFLOW_ORCHESTRATOR_ATTACH_ADDRESS": self.attach}

    def as_json(self) -> dict[str, str]:
        """Return the content of `endpoints.json`."""
        return {**{name: self.client(name) for name in SERVICES}, "attach": self.attach}


def plan(env: Mapping[str, str], *, ports: Ports, sockets: Path) -> Addresses:
    """Choose an address for each service and check that it can be bound; raises StandaloneError."""
    listen, metrics = _free_ports() if ports == "auto" else _fixed_ports(env)
    for planned, suffix in ((listen, "LISTEN"), (metrics, "METRICS_LISTEN")):
        for name in SERVICES:
            setting = f"QFLOW_{name.upper()}_{suffix}"
            given = env.get(setting)
            if given:
                planned[name] = given
            _check(setting, planned[name])
    attach = env.get("QFLOW_ORCHESTRATOR_ATTACH_LISTEN") or f"unix:{sockets / 'attach.sock'}"
    _check("QFLOW_ORCHESTRATOR_ATTACH_LISTEN", attach)
    internal = env.get("QFLOW_RUNNER_INTERNAL_LISTEN")
    if internal:
        _check("QFLOW_RUNNER_INTERNAL_LISTEN", internal)
    elif tls_files.wanted(env):
        internal = f"unix:{sockets / 'runner.sock'}"
    return Addresses(listen, attach, metrics, internal or None)


def check_host(setting: str, host: str) -> None:
    """Raise if a host name cannot be resolved, naming its setting."""
    try:
        socket.getaddrinfo(host, None)
    except (socket.gaierror, UnicodeError) as error:
        raise StandaloneError(
            f"{setting}: the host name {host!r} cannot be resolved ({error}); "
            "correct the name, or check this machine's DNS (`getent hosts "
            f"{host}`)"
        ) from error


def _fixed_ports(env: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    text = env.get("QFLOW_PORT_BASE") or str(_PORT_BASE)
    base_max = _PORT_MAX - _METRICS_OFFSET - len(SERVICES)
    if not text.isdecimal() or not 0 < int(text) <= base_max:
        raise StandaloneError(
            f"QFLOW_PORT_BASE must be a port number up to {base_max}, not {text!r}"
        )
    listen, metrics = (
        {name: f"127.0.0.1:{base + at}" for at, name in enumerate(SERVICES, start=1)}
        for base in (int(text), int(text) + _METRICS_OFFSET)
    )
    return listen, metrics


def _free_ports() -> tuple[dict[str, str], dict[str, str]]:
    # All are bound at once, so that they differ; the services bind them a moment later.
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(2 * len(SERVICES))]
        for one in held:
            one.bind(("127.0.0.1", 0))
        free = iter([f"127.0.0.1:{one.getsockname()[1]}" for one in held])
        return {name: next(free) for name in SERVICES}, {name: next(free) for name in SERVICES}


def _check(setting: str, listen: str) -> None:
    if listen.startswith("unix:"):
        return
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > _PORT_MAX:
        raise StandaloneError(f"{setting} must be host:port or unix:path, not {listen!r}")
    bare = host.strip("[]")
    check_host(setting, bare)
    family, kind, protocol, _, address = socket.getaddrinfo(
        bare, int(port), type=socket.SOCK_STREAM
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        # As a server does: lingering connections from before are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise _cannot_listen(setting, listen, error) from error


def _cannot_listen(setting: str, listen: str, error: OSError) -> StandaloneError:
    port = listen.rpartition(":")[2]
    if error.errno == errno.EADDRINUSE:
        return PortTakenError(
            f"port {port} is taken by another program ({setting}={listen}). See which with "
            f"`ss -ltnp sport = :{port}`; choose other ports with QFLOW_PORT_BASE=7200 (gives "
            "7201 to 7204 and 7211 to 7214), or any free ones with `--ports auto`",
            port=port,
        )
    return StandaloneError(f"{setting}: cannot listen on {listen}: {error.strerror}")
