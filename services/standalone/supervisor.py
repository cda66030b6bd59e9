"""Keep PostgreSQL, Redis and the four services running as one, on one machine."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from services.kit import env as read
from services.standalone import addresses, environments, process, redis, tls_files
from services.standalone.addresses import SERVICES, Addresses, Ports
from services.standalone.home import Home, write_private
from services.standalone.kept import Kept, all_gone, backoff_s, first_of
from services.standalone.postgres import Binaries, Postgres
from services.standalone.process import ProcessMark, StandaloneError, describe_exit
from services.standalone.tls_files import ENDPOINTS_KEY

_READY_TIMEOUT_S: Final = 60.0
_FIRST_FAILURES_MAX: Final = 3
_EXIT_MISCONFIGURED: Final = 2  # how a service says that another try will not help
_STEADY_S: Final = 30.0
_RESTART_PAUSE_MAX_S: Final = 30.0
_LOG_CHECK_S: Final = 10.0
_CERTIFICATES_CHECK_S: Final = 3600.0  # they are renewed when half of their life is over
# From SIGTERM to the end: runners hand over what they finish while orchestrators still take it.
_STOP_ORDER: Final = ((("runner",), 20.0), (("orchestrator", "registry", "telemetry"), 6.0))
_KILL_WAIT_S: Final = 1.0
_STOPPING: Final = (
    f"Stopping: what runs has up to {_STOP_ORDER[0][1]:.0f} s to end; Ctrl-C again ends it now."
)
Say = Callable[[str], None]


@dataclass(slots=True)
class Supervisor:
    """One run of the suite on one home."""

    home: Home
    env: Mapping[str, str]
    ports: Ports
    say: Say
    addresses: Addresses = field(init=False)
    cache: str = field(init=False, default="")
    database: str = field(init=False, default="")
    isolation: str = field(init=False, default="unknown")
    authorities: str | None = field(init=False, default=None)  # None: plain text
    _restart_pause_max_s: float = field(init=False, default=_RESTART_PAUSE_MAX_S)
    _kept: dict[str, Kept] = field(init=False, default_factory=dict)
    _postgres: Postgres | None = field(init=False, default=None)
    _redis: redis.Redis | None = field(init=False, default=None)
    _stopping: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    _hurried: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    _failed: list[str] = field(init=False, default_factory=list)

    async def run(self, then: Callable[[Supervisor], Awaitable[int]]) -> int:
        """Start everything, do `then` until it ends or a signal comes, stop everything.

        Gives the exit code; raises StandaloneError where the suite cannot start or go on.
        """
        self._on_signals()
        with self.home.locked():
            self._reap()
            try:
                self._restart_pause_max_s = read.seconds(
                    self.env,
                    "QFLOW_RESTART_PAUSE_MAX_S",
                    _RESTART_PAUSE_MAX_S,
                    low=0.1,
                    high=3600.0,
                )
                if not await self._unless_stopped(self._start()):
                    return 0
                return await self._until_end(then)
            except read.EnvError as error:
                raise StandaloneError(str(error)) from None
            except BaseExceptionGroup as group:
                raise first_of(group, StandaloneError) or group from None
            finally:
                await self._stop()

    async def stopped(self) -> None:
        """Wait until the suite is told to stop or gives up."""
        await self._stopping.wait()

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
            self._keep(name, self._service_starter(name, prepared, redis_url))
        write_private(self.home.run / "endpoints.json", json.dumps(self.endpoints(), indent=1))
        write_private(
            self.home.run / "metrics.json", json.dumps(dict(self.addresses.metrics), indent=1)
        )

    def endpoints(self) -> dict[str, str]:
        """Give what a client on this machine needs: addresses, and whom to believe if it is TLS."""
        believed = {} if self.authorities is None else {ENDPOINTS_KEY: self.authorities}
        return {**self.addresses.as_json(), **believed}

    async def _make_certificates(self) -> None:
        """Have certificates made, or renewed where they are due: services notice by themselves."""
        making = self._python(
            *("services.standalone", "certificates", "--folder", str(self.home.tls)),
            log="certificates",
        )
        if code := await process.wait(making):
            raise StandaloneError(
                f"no certificates could be made ({describe_exit(code)}). "
                + self._log_of("certificates")
            )

    def _start_postgres(self) -> tuple[str, bool]:
        given = self.env.get("QFLOW_DATABASE_URL")
        if given:
            parts = urlsplit(given)
            if parts.hostname:
                addresses.check_host("QFLOW_DATABASE_URL", parts.hostname)
            self.database = f"PostgreSQL at {parts.hostname or 'a local socket'}"
            (self.home.secrets / "database.url").unlink(missing_ok=True)  # an embedded one's
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

        self._keep("postgres", start)
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

        self._keep("redis", start)
        return server.url

    async def _prepare(
        self, preparing: subprocess.Popen[bytes], database_url: str, *, create: bool
    ) -> dict[str, Any]:
        asked = {"database_url": database_url, "home": str(self.home.root), "create": create}
        assert preparing.stdin is not None
        assert preparing.stdout is not None
        # Small enough for a pipe both ways, so nobody waits but for the process' end.
        with suppress(BrokenPipeError):  # it has failed already: its log says why
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

    def _keep(self, name: str, start: Callable[[], subprocess.Popen[bytes]]) -> None:
        kept = Kept(name, start)
        self._kept[name] = kept
        kept.child = start()
        self._remember()

    # Stay.

    async def _until_end(self, then: Callable[[Supervisor], Awaitable[int]]) -> int:
        result: list[int] = []

        async def work() -> None:
            await self._ready()
            result.append(await then(self))

        async with asyncio.TaskGroup() as tasks:
            background = [tasks.create_task(self._restart(kept)) for kept in self._kept.values()]
            background.append(tasks.create_task(self._cap_logs()))
            if self.authorities is not None:
                background.append(tasks.create_task(self._renew_certificates()))
            try:
                await self._unless_stopped(work())
            finally:
                self._stopping.set()
                for task in background:
                    task.cancel()
        if self._failed:
            raise StandaloneError(self._failed[0])
        return result[0] if result else 0

    async def _unless_stopped(self, work: Awaitable[None]) -> bool:
        """Do the work, but let it go when the suite stops; tell whether it was done."""
        doing = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self._stopping.wait())
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
        """Wait until every service serves; the probe says so name by name."""
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
                        self._kept[name].ready = True
                await probe.wait()
        except TimeoutError:
            late = [name for name in SERVICES if not self._kept[name].ready]
            raise StandaloneError(
                f"not ready within {_READY_TIMEOUT_S:.0f} s: {', '.join(late)}. "
                + self._log_of(late[0])
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

    async def _restart(self, kept: Kept) -> None:
        """Start a child again whenever it ends, waiting longer each time it ends soon."""
        while True:
            began = time.monotonic()
            assert kept.child is not None
            code = await process.wait(kept.child)
            if self._stopping.is_set():
                return
            kept.failures = 1 if time.monotonic() - began > _STEADY_S else kept.failures + 1
            hopeless = code == _EXIT_MISCONFIGURED or kept.failures >= _FIRST_FAILURES_MAX
            if hopeless and not kept.ready and kept.name in SERVICES:
                self._failed.append(
                    f"{kept.name} does not start ({describe_exit(code)}). "
                    + self._log_of(kept.name)
                )
                self._stopping.set()
                return
            pause_s = backoff_s(kept.failures, max_s=self._restart_pause_max_s)
            self.say(f"{kept.name} ended ({describe_exit(code)}), starts again in {pause_s:g} s")
            await asyncio.sleep(pause_s)
            try:
                # In this thread, the main one: children die with the thread that starts them.
                kept.child = kept.start()
                self._remember()
            except (StandaloneError, OSError) as error:
                # OSError: the machine has no process, memory or file left at the moment.
                self.say(f"{kept.name}: {error}")

    async def _renew_certificates(self) -> None:
        while True:
            await asyncio.sleep(_CERTIFICATES_CHECK_S)
            try:
                await self._make_certificates()
            except (StandaloneError, OSError) as error:
                self.say(f"certificates: {error}")

    async def _cap_logs(self) -> None:
        while True:
            await asyncio.sleep(_LOG_CHECK_S)
            for log in self.home.log.glob("*.log"):
                process.cap_log(log)

    # Stop.

    async def _stop(self) -> None:
        """Stop services in their order, then Redis, then PostgreSQL; a second Ctrl-C kills."""
        for names, patience_s in _STOP_ORDER:
            children = [
                kept.child
                for name in names
                if (kept := self._kept.get(name)) and kept.child and kept.child.poll() is None
            ]
            for child in children:
                child.terminate()
            await self._unless_hurried(all_gone(children, timeout_s=patience_s))
            for child in children:
                if child.poll() is None:
                    child.kill()
            await all_gone(children, timeout_s=_KILL_WAIT_S)
        if self._redis is not None:
            self._redis.stop()
        if self._postgres is not None:
            self._postgres.stop()
        for name in ("endpoints.json", "metrics.json", "processes.json"):
            (self.home.run / name).unlink(missing_ok=True)

    async def _unless_hurried(self, drain: Coroutine[Any, Any, None]) -> None:
        """Wait for a drain, but no longer once Ctrl-C came again."""
        draining = asyncio.ensure_future(drain)
        hurried = asyncio.ensure_future(self._hurried.wait())
        await asyncio.wait({draining, hurried}, return_when=asyncio.FIRST_COMPLETED)
        for each in (draining, hurried):
            each.cancel()
        await asyncio.gather(draining, hurried, return_exceptions=True)

    def _reap(self) -> None:
        """End what a killed supervisor left; its children should have died with it."""
        for name, mark in self.home.remembered().items():
            if name != "postgres":  # has a way of its own to be stopped without harm
                mark.end([(signal.SIGKILL, 5.0)])

    # Helpers.

    def _remember(self) -> None:
        marks = {
            name: mark
            for name, kept in self._kept.items()
            if kept.child is not None and (mark := ProcessMark.of(kept.child.pid))
        }
        self.home.remember(marks)

    def _log_of(self, name: str) -> str:
        log = self.home.log / f"{name}.log"
        return f"The end of {log}:\n{process.tail(log)}"

    def _on_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stopping.is_set():
            # A person loses patience with Ctrl-C. A terminal that closes may hang up twice, and
            # whoever manages processes may ask them twice to end: neither means "now".
            if number == signal.SIGINT:
                self._hurried.set()
            return
        self._stopping.set()
        with suppress(OSError):  # the terminal that hung up takes no line
            self.say(_STOPPING)


def _redis_host(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        if parts.scheme in {"redis", "rediss", "unix"}:
            _ = parts.port  # it is read only now
            return parts.hostname
    except ValueError:
        pass
    raise StandaloneError("QFLOW_REDIS_URL must look like redis://host:6379/0 or unix:///a/socket")
