"""Run PostgreSQL, Redis and the four services together on one machine."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from services.kit import env as read
from services.standalone import addresses, environments, process, redis, tls_files
from services.standalone.addresses import SERVICES, Addresses, Ports
from services.standalone.children import LONGEST_STOP_S, RESTART_PAUSE_MAX_S, Children
from services.standalone.home import Home, write_private
from services.standalone.postgres import Binaries, Postgres
from services.standalone.process import StandaloneError, describe_exit
from services.standalone.tls_files import ENDPOINTS_KEY

_READY_TIMEOUT_S: Final = 60.0
_CERTIFICATES_CHECK_S: Final = 3600.0  # certificates are renewed after half of their life
_STOPPING: Final = (
    f"Stopping: what runs has up to {LONGEST_STOP_S:.0f} s to end; Ctrl-C again ends it now."
)
Say = Callable[[str], None]


@dataclass(slots=True)
class Supervisor:
    """One run of the suite on a home folder."""

    home: Home
    env: Mapping[str, str]
    ports: Ports
    say: Say
    addresses: Addresses = field(init=False)
    cache: str = field(init=False, default="")
    database: str = field(init=False, default="")
    isolation: str = field(init=False, default="unknown")
    authorities: str | None = field(init=False, default=None)  # None: no TLS
    children: Children = field(init=False)
    _postgres: Postgres | None = field(init=False, default=None)
    _redis: redis.Redis | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Start without children."""
        self.children = Children(self.home, self.say)

    async def run(self, then: Callable[[Supervisor], Awaitable[int]]) -> int:
        """Start everything, run `then` until it ends or a signal arrives, and stop everything.

        Returns the exit code; raises StandaloneError if the suite cannot start or continue.
        """
        self._on_signals()
        with self.home.locked():
            self.children.reap()
            try:
                self.children.restart_pause_max_s = read.seconds(
                    self.env,
                    "QFLOW_RESTART_PAUSE_MAX_S",
                    RESTART_PAUSE_MAX_S,
                    low=0.1,
                    high=3600.0,
                )
                if not await self._unless_stopped(self._start()):
                    return 0
                return await self._until_end(then)
            except read.EnvError as error:
                raise StandaloneError(str(error)) from None
            except BaseExceptionGroup as group:
                raise _first_of(group, StandaloneError) or group from None
            finally:
                await self._stop()

    async def stopped(self) -> None:
        """Wait until the suite is told to stop or gives up."""
        await self.children.stopping.wait()

    # Start.

    async def _start(self) -> None:
        self.addresses = addresses.plan(self.env, ports=self.ports, sockets=self.home.sockets())
        if tls_files.wanted(self.env):
            self.authorities = str(tls_files.believed(self.home.tls, self.env))
            await self._make_certificates()
        database_url, embedded = self._start_postgres()
        preparing = self._python("services.standalone.prepare", log="prepare", pipes=True)
        try:
            redis_url = self._start_redis()
            if self._postgres is not None:
                await asyncio.to_thread(self._postgres.wait_ready)
            if self._redis is not None:
                await asyncio.to_thread(self._redis.wait_ready)
            prepared = await self._prepare(preparing, database_url, create=embedded)
        finally:
            if preparing.poll() is None:
                preparing.kill()
            preparing.communicate()  # closes the pipes
        for name in SERVICES:
            self.children.keep(name, self._service_starter(name, prepared, redis_url))
        write_private(self.home.run / "endpoints.json", json.dumps(self.endpoints(), indent=1))
        write_private(
            self.home.run / "metrics.json", json.dumps(dict(self.addresses.metrics), indent=1)
        )

    def endpoints(self) -> dict[str, str]:
        """Return what a client on this machine needs: addresses, and with TLS the file to trust."""
        believed = {} if self.authorities is None else {ENDPOINTS_KEY: self.authorities}
        return {**self.addresses.as_json(), **believed}

    async def _make_certificates(self) -> None:
        """Create or renew certificates in a child process; services reload them by themselves."""
        making = self._python(
            *("services.standalone", "certificates", "--folder", str(self.home.tls)),
            log="certificates",
        )
        if code := await process.wait(making):
            raise StandaloneError(
                f"no certificates could be made ({describe_exit(code)}). "
                + self.children.log_of("certificates")
            )

    def _start_postgres(self) -> tuple[str, bool]:
        given = self.env.get("QFLOW_DATABASE_URL")
        if given:
            parts = urlsplit(given)
            if parts.hostname:
                addresses.check_host("QFLOW_DATABASE_URL", parts.hostname)
            self.database = f"PostgreSQL at {parts.hostname or 'a local socket'}"
            (self.home.secrets / "database.url").unlink(missing_ok=True)  # of an embedded server
            return given, False
        binaries = Binaries.find(self.env)
        server = Postgres(
            self.home.root / "postgres",
            binaries=binaries,
            sockets=self.home.sockets(),
            password=self.home.secret("postgres.password"),
            log=self.home.log / "postgres.log",
        )
        self._postgres = server
        self.database = f"embedded PostgreSQL {binaries.major} in {server.folder}"

        def start() -> subprocess.Popen[bytes]:
            server.prepare()
            server.spawn()
            assert server.child is not None
            return server.child

        self.children.keep("postgres", start)
        write_private(self.home.secrets / "database.url", server.url() + "\n")
        return server.url(), True

    def _start_redis(self) -> str | None:
        given = self.env.get("QFLOW_REDIS_URL")
        if given:
            host = _redis_host(given)
            if host:
                addresses.check_host("QFLOW_REDIS_URL", host)
            self.cache = f"Redis at {host or 'a local socket'}"
            if not redis.listens(given):
                self.cache += "  <- DOES NOT ANSWER (QFLOW_REDIS_URL); reads are slower"
            return given
        program = redis.find_server(self.env)
        if program is None:
            self.cache = (
                "none (no redis-server on PATH and no wheel for this Python): reads are slower"
            )
            return None
        server = redis.Redis(program, sockets=self.home.sockets(), log=self.home.log / "redis.log")
        self._redis = server
        self.cache = f"embedded {program.name}"

        def start() -> subprocess.Popen[bytes]:
            server.spawn()
            assert server.child is not None
            return server.child

        self.children.keep("redis", start)
        return server.url

    async def _prepare(
        self, preparing: subprocess.Popen[bytes], database_url: str, *, create: bool
    ) -> dict[str, Any]:
        asked = {"database_url": database_url, "home": str(self.home.root), "create": create}
        assert preparing.stdin is not None
        assert preparing.stdout is not None
        # Both messages fit into a pipe's buffer, so only the end of the process is awaited.
        with suppress(BrokenPipeError):  # it has failed already; its log says why
            preparing.stdin.write(json.dumps(asked).encode() + b"\n")
            preparing.stdin.flush()
        await process.wait(preparing)
        out = preparing.stdout.read()
        try:
            answer: dict[str, Any] = json.loads(out)
        except ValueError:
            log = self.home.log / "prepare.log"
            raise StandaloneError(
                f"the database could not be prepared. The end of {log}:\n{process.tail(log)}"
            ) from None
        if "error" in answer:
            raise StandaloneError(answer["error"])
        return answer

    def _service_starter(
        self, name: str, prepared: Mapping[str, Any], redis_url: str | None
    ) -> Callable[[], subprocess.Popen[bytes]]:
        env = {
            **environments.of_service(name, self.env, self.home, prepared, redis_url),
            **self.addresses.env(name),
            **(
                {}
                if self.authorities is None
                else tls_files.settings_of(self.home.tls, name, self.env)
            ),
        }
        return lambda: self._python(f"services.{name}", log=name, env=env)

    def _python(
        self,
        module: str,
        *arguments: str,
        log: str,
        env: Mapping[str, str] | None = None,
        pipes: bool = False,
    ) -> subprocess.Popen[bytes]:
        return process.start(
            [sys.executable, "-m", module, *arguments],
            log=self.home.log / f"{log}.log",
            env=environments.common(self.env, self.home) if env is None else env,
            stdin=subprocess.PIPE if pipes else "null",
            stdout=subprocess.PIPE if pipes else None,
        )

    # Run.

    async def _until_end(self, then: Callable[[Supervisor], Awaitable[int]]) -> int:
        result: list[int] = []

        async def work() -> None:
            await self._ready()
            result.append(await then(self))

        async with asyncio.TaskGroup() as tasks:
            background = [tasks.create_task(each) for each in self.children.restarting()]
            background.append(tasks.create_task(self.children.cap_logs()))
            if self.authorities is not None:
                background.append(tasks.create_task(self._renew_certificates()))
            try:
                await self._unless_stopped(work())
            finally:
                self.children.stopping.set()
                for task in background:
                    task.cancel()
        if self.children.failed:
            raise StandaloneError(self.children.failed[0])
        return result[0] if result else 0

    async def _unless_stopped(self, work: Awaitable[None]) -> bool:
        """Run the work, but cancel it when the suite stops; returns whether it finished."""
        doing = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self.children.stopping.wait())
        await asyncio.wait({doing, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not doing.done():
            doing.cancel()
            with suppress(asyncio.CancelledError):
                await doing
            return False
        doing.result()
        return True

    async def _ready(self) -> None:
        """Wait until all services are serving, as reported by the probe line by line."""
        probe = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.standalone.probe"),
            *(f"{name}={address}" for name, address in self._probed().items()),
            stdout=subprocess.PIPE,
            env=environments.common(self.env, self.home),
        )
        try:
            assert probe.stdout is not None
            async with asyncio.timeout(_READY_TIMEOUT_S):
                while line := await probe.stdout.readline():
                    name, _, told = line.decode().strip().partition("=")
                    if name == "isolation":
                        self.isolation = told
                    else:
                        self.children[name].ready = True
                await probe.wait()
        except TimeoutError:
            late = [name for name in SERVICES if not self.children[name].ready]
            raise StandaloneError(
                f"not ready within {_READY_TIMEOUT_S:.0f} s: {', '.join(late)}. "
                + self.children.log_of(late[0])
            ) from None
        finally:
            if probe.returncode is None:
                probe.kill()
                await probe.wait()

    def _probed(self) -> dict[str, str]:
        return {
            name: address
            for name, address in self.endpoints().items()
            if name in {*SERVICES, ENDPOINTS_KEY}
        }

    async def _renew_certificates(self) -> None:
        while True:
            await asyncio.sleep(_CERTIFICATES_CHECK_S)
            try:
                await self._make_certificates()
            except (StandaloneError, OSError) as error:
                self.say(f"certificates: {error}")

    # Stop.

    async def _stop(self) -> None:
        """Stop the services, then Redis, then PostgreSQL."""
        await self.children.stop()
        if self._redis is not None:
            self._redis.stop()
        if self._postgres is not None:
            self._postgres.stop()
        for name in ("endpoints.json", "metrics.json", "processes.json"):
            (self.home.run / name).unlink(missing_ok=True)

    def _on_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self.children.stopping.is_set():
            # Only a second Ctrl-C means "now": a closing terminal may send SIGHUP twice, and
            # process managers may send SIGTERM twice.
            if number == signal.SIGINT:
                self.children.hurried.set()
            return
        self.children.stopping.set()
        with suppress(OSError):  # the terminal may be gone
            self.say(_STOPPING)


def _redis_host(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        if parts.scheme in {"redis", "rediss", "unix"}:
            _ = parts.port  # parsed, and so validated, only on access
            return parts.hostname
    except ValueError:
        pass
    raise StandaloneError("QFLOW_REDIS_URL must look like redis://host:6379/0 or unix:///a/socket")


def _first_of(
    group: BaseExceptionGroup[BaseException], kind: type[BaseException]
) -> BaseException | None:
    """Return the first error of a kind in a group, at any depth."""
    for error in group.exceptions:
        found = _first_of(error, kind) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(found, kind):
            return found
    return None
