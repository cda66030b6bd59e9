"""The folder that holds everything a suite on one machine keeps."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

from services.kit.key_files import DATA, SECRETS, file_of
from services.standalone import hints
from services.standalone.process import ProcessMark, StandaloneError, wait_until

# The limit for a Unix socket's path, and the longest name used within the folder.
_SOCKET_PATH_BYTES_MAX: Final = 107
_SOCKET_NAME_LONGEST: Final = "/attach-00.sock"
_SOCKETS_PREFIX: Final = "qflow-"


class Home:
    """Paths under QFLOW_HOME, its lock, its secrets and a folder with a short path for sockets."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.secrets = self.root / "secrets"
        self.log = self.root / "log"
        self.run = self.root / "run"
        self.tls = self.root / "tls"

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self:
        """Use QFLOW_HOME, or .qflow in this checkout, whatever the current folder."""
        return cls(Path(env.get("QFLOW_HOME") or hints.HOME_DEFAULT))

    def make(self) -> None:
        """Create the folders, accessible only to us."""
        for folder in (self.root, self.secrets, self.log, self.run):
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise StandaloneError(
                    f"QFLOW_HOME: cannot make {folder} ({error.strerror}); "
                    "choose a folder you may write to, as in QFLOW_HOME=$HOME/qflow"
                ) from error
        self.secrets.chmod(0o700)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for this process, or raise naming the process that holds it."""
        self.make()
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # With retries, since a `status` that checks the lock holds it for a moment.
            if not wait_until(lambda: _try_lock(descriptor), timeout_s=0.3):
                raise StandaloneError(_in_use(self.root, self.holder()))
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            try:
                yield
            finally:
                self._leave_sockets()
        finally:
            os.close(descriptor)

    def holder(self) -> int | None:
        """Return the process id of the suite running on this folder.

        None without one, 0 if unknown.
        """
        try:
            with (self.root / "lock").open("r+b") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    text = file.read(32).strip()
                    return int(text) if text.isdigit() else 0
        except OSError:
            pass
        return None

    def secret(self, name: str) -> str:
        """Return a secret stored under the folder, creating a random one the first time."""
        path = self.secrets / name
        try:
            return path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            value = secrets.token_hex(24)
            write_private(path, value + "\n")
            return value

    def secrets_key(self) -> Path:
        """Return the file of the root key of secrets, creating it the first time.

        It is in no backup of the database; without it the secrets are lost.
        """
        return self._root_key(file_of(SECRETS))

    def data_key(self, *, make: bool) -> Path | None:
        """Return the file of the root key of data at rest; None if there is none and not `make`.

        It is in no backup either; without it sealed inputs and outputs are lost.
        """
        name = file_of(DATA)
        return self._root_key(name) if make or (self.secrets / name).exists() else None

    def _root_key(self, name: str) -> Path:
        path = self.secrets / name
        if not path.exists():
            key = base64.b64encode(secrets.token_bytes(32)).decode("ascii")
            write_private(path, f"k1:{key}\n")
        return path

    def sockets(self) -> Path:
        """Return a private folder for Unix sockets whose path is short enough."""
        longest = len(os.fsencode(self.run)) + len(_SOCKET_NAME_LONGEST)
        if longest <= _SOCKET_PATH_BYTES_MAX:
            return self.run
        record = self.run / "sockets"
        try:
            folder = Path(record.read_text(encoding="utf-8"))
            if _is_private(folder):
                return folder
        except OSError:
            pass
        digest = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:8]
        base = os.environ.get("XDG_RUNTIME_DIR", "")
        if not os.access(base, os.W_OK) or len(base) > 40:  # noqa: PLR2004 - /run/user/N is short
            base = "/tmp"  # noqa: S108 - mkdtemp creates an unpredictable name, mode 0700
        folder = Path(tempfile.mkdtemp(prefix=f"{_SOCKETS_PREFIX}{digest}-", dir=base))
        write_private(record, str(folder))
        return folder

    def _leave_sockets(self) -> None:
        """Remove the folder for sockets outside the home, if any.

        Called when nothing runs any more.
        """
        record = self.run / "sockets"
        with suppress(OSError):
            folder = Path(record.read_text(encoding="utf-8"))
            if _is_private(folder) and folder.name.startswith(_SOCKETS_PREFIX):
                shutil.rmtree(folder)
            record.unlink()

    def remember(self, marks: Mapping[str, ProcessMark]) -> None:
        """Record which processes are ours, for the start after a kill -9."""
        known = {name: [mark.pid, mark.started_ticks] for name, mark in marks.items()}
        write_private(self.run / "processes.json", json.dumps({"boot": _boot(), "known": known}))

    def remembered(self) -> dict[str, ProcessMark]:
        """Return the recorded processes that are still alive, if they are from this boot."""
        try:
            record = json.loads((self.run / "processes.json").read_text(encoding="utf-8"))
            if record["boot"] != _boot():
                return {}
            marks = {name: ProcessMark(*pair) for name, pair in record["known"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return {name: mark for name, mark in marks.items() if mark.is_alive()}


def write_private(path: Path, text: str) -> None:
    """Write a file of mode 0600 atomically."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_private(folder: Path) -> bool:
    try:
        status = folder.lstat()
    except OSError:
        return False
    closed = stat.S_IMODE(status.st_mode) & 0o077 == 0
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and closed


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _in_use(root: Path, holder: int | None) -> str:
    who = f"process {holder}" if holder else "another process"
    return (
        f"a suite already runs on {root} ({who}). "
        f"See it with `{hints.standalone('status', home=root)}`, "
        f"stop it with `kill {holder or '<pid>'}`, "
        "or give this one a folder of its own: QFLOW_HOME=/another/folder"
    )
