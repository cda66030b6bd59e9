"""uv: pins requirements and fetches wheels, nothing else: no source is built, no code is run.

Where namespaces are available it only sees the system's libraries, one Python, the places that its
settings name, and one writable folder for both its cache and its target, since hard links cannot
cross mounts. It uses the machine's network to reach the index. For a tenant's own indexes it goes
through a proxy that checks the addresses; their credentials are only in its environment.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from services.kit import child
from services.runner.domain.environments import without_addresses
from services.runner.domain.network import Reach
from services.runner.domain.package_indexes import OpenIndex, as_config, credentials, host_of
from services.runner.domain.secrets import Mask
from services.runner.gateways.disk import DiskFullError, folder_bytes, remove_folder, within
from services.runner.gateways.egress import proxy_to
from services.runner.gateways.sandbox.bubblewrap import memory_file, separate, system_folders
from services.runner.gateways.sandbox.port import Interpreter
from services.runner.gateways.sandbox.seccomp import build_filter

_RESOLVE_S: Final = 60.0
_INSTALL_S: Final = 600.0
_RESOLVE_BYTES_MAX: Final = 500 * 1024**2
INSTALL_BYTES_MAX: Final = 2 * 1024**3
_OUTPUT_BYTES_MAX: Final = 4 * 1024 * 1024
_UNSATISFIABLE: Final = 1
INDEX_REFUSES: Final = "INDEX_REFUSES"
DISK_FULL: Final = "RUNNER_DISK_FULL"
# uv does not read pip's settings, so these are translated.
_FROM_PIP: Final = {
    "PIP_INDEX_URL": "UV_DEFAULT_INDEX",
    "PIP_FIND_LINKS": "UV_FIND_LINKS",
    "PIP_CERT": "SSL_CERT_FILE",
}
_PASSED_ON: Final = (
    "UV_DEFAULT_INDEX",
    "UV_INDEX_URL",
    "UV_FIND_LINKS",
    "UV_NATIVE_TLS",
    "UV_SYSTEM_CERTS",
    "UV_INSECURE_HOST",
    "UV_HTTP_TIMEOUT",
    "UV_HTTP_RETRIES",
    "UV_EXCLUDE_NEWER",
    "UV_OFFLINE",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
)
# Needed to resolve and trust the index, besides what is below /usr.
_ETC: Final = (
    *("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/gai.conf", "/etc/host.conf"),
    *("/etc/ssl", "/etc/pki", "/etc/ca-certificates"),
)
# No core dump, and no single file above the total limit; in blocks of 512 bytes.
_LIMIT: Final = 'ulimit -c 0 && ulimit -f "$1" && shift && exec "$@"'
# Wheels only: building a source distribution would run its author's code.
_WHEELS_ONLY: Final = ("--only-binary", ":all:", "--quiet", "--color", "never")
# A flat index before all others: a package found there is taken from nowhere else.
_OWN_INDEX: Final = '[[index]]\nname = "Own"\nurl = {url}\nformat = "flat"\n'
_PROXIES: Final = ("http_proxy", "https_proxy", "all_proxy")
_REFUSED_US: Final = re.compile(r"\b(401 Unauthorized|403 Forbidden)\b|Missing credentials")


class UvError(Exception):
    """An error of uv, fit for users to see; `retryable` if it is not about the packages."""

    def __init__(self, message: str, *, retryable: bool, reason: str = "INDEX_UNAVAILABLE") -> None:
        super().__init__(message)
        self.retryable = retryable
        self.reason = reason


def disk_full() -> UvError:
    """Return the error of a full disk."""
    return UvError("the disk of the runner is full", retryable=True, reason=DISK_FULL)


@dataclass(frozen=True, slots=True)
class _Done:
    status: int
    stdout: str
    stderr: str


class Uv:
    """Runs uv in a folder given by the caller, which has its cache and its target.

    Wheels are hard-linked from the cache. Only one caller at a time may install in a folder.
    """

    def __init__(
        self,
        *,
        env: Mapping[str, str],
        bubblewrap: Path | None,
        install_bytes_max: int = INSTALL_BYTES_MAX,
        wheelhouse: Path | None = None,
        offline: bool = False,
        trusted: Sequence[str] = (),
    ) -> None:
        self._program = find_uv()
        self._trusted = trusted  # hosts of tenants' indexes that may have private addresses
        self._env = uv_environment(env, wheelhouse=wheelhouse, offline=offline)
        self._bubblewrap = bubblewrap
        self._install_bytes_max = install_bytes_max

    async def resolve(
        self,
        requirements: Sequence[str],
        *,
        folder: Path,
        python_version: str,
        interpreter: Interpreter,
        own: Path | None = None,
        indexes: Sequence[OpenIndex] = (),
        released_before: datetime | None = None,
    ) -> str:
        """Pin requirements for this platform to exact versions with hashes; raises UvError.

        `own` is a folder of wheels with precedence over every index, and `indexes` have precedence
        over the deployment's: a package is only taken from the first that has it. With
        `released_before`, later releases on indexes are ignored, and those without a known date.
        """
        age = ("--exclude-newer", released_before.isoformat()) if released_before else ()
        done = await self._run(
            [
                *("pip", "compile", "-", "--generate-hashes", "--no-header", "--no-annotate"),
                *("--python", str(interpreter.executable), "--python-version", python_version),
                *age,
                *_WHEELS_ONLY,
            ],
            folder=folder,
            own=own,
            indexes=indexes,
            interpreter=interpreter,
            stdin="\n".join(requirements),
            timeout_s=_RESOLVE_S,
            bytes_max=_RESOLVE_BYTES_MAX,
        )
        if done.status != 0:
            raise _error(done, indexes)
        return done.stdout

    async def install(
        self,
        lock: Path,
        target: Path,
        *,
        folder: Path,
        interpreter: Interpreter,
        own: Path | None = None,
        indexes: Sequence[OpenIndex] = (),
    ) -> None:
        """Fetch the locked wheels into a folder, each verified by its hash; raises UvError."""
        done = await self._run(
            [
                *("pip", "install", "--python", str(interpreter.executable)),
                *("--target", str(target), "--require-hashes", "--no-deps"),
                *("--link-mode", "hardlink", *_WHEELS_ONLY, "-r", str(lock)),
            ],
            folder=folder,
            own=own,
            indexes=indexes,
            interpreter=interpreter,
            stdin="",
            timeout_s=_INSTALL_S,
            bytes_max=self._install_bytes_max,
            target=target,
        )
        if done.status != 0:
            raise _error(done, indexes)

    async def _run(
        self,
        arguments: Sequence[str],
        *,
        folder: Path,
        own: Path | None,
        indexes: Sequence[OpenIndex],
        interpreter: Interpreter,
        stdin: str,
        timeout_s: float,
        bytes_max: int,
        target: Path | None = None,
    ) -> _Done:
        cache = folder / ".cache"
        cache.mkdir(parents=True, exist_ok=True)
        if target is not None:
            for left in cache.glob(".tmp*"):  # of a process that was killed
                remove_folder(left)
        since = time.time() - 1  # the file system's clock may be a tick behind

        def used() -> int:
            return folder_bytes(*_changed(cache, since), *((target,) if target else ()))

        limit = ["/bin/sh", "-c", _LIMIT, "sh", str(bytes_max // 512)]
        walls, descriptors = self.walls(folder, interpreter, own)
        env = {**self._env, "HOME": str(cache), "UV_CACHE_DIR": str(cache)}
        try:
            with _config(folder, own, indexes) as config, self._way_to(indexes) as way:
                argv = [*limit, *walls, str(self._program), *arguments, *config]
                work = _spawn(
                    argv,
                    env={**env, **way, **credentials(indexes)},
                    stdin=stdin,
                    timeout_s=timeout_s,
                    pass_fds=descriptors,
                )
                return await within(work, used=used, bytes_max=bytes_max)
        except DiskFullError:
            if target is not None:
                remove_folder(cache)
            raise UvError(
                f"the packages take more than {bytes_max} bytes, which is the limit",
                retryable=False,
            ) from None
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    @contextmanager
    def _way_to(self, indexes: Sequence[OpenIndex]) -> Iterator[Mapping[str, str]]:
        """Yield the environment variables for indexes that tenants chose.

        They name a proxy that connects to no private address. If the deployment has a proxy of its
        own, that is the only way out, and its rules apply instead.
        """
        if not indexes or any(name.lower() in _PROXIES for name in self._env):
            yield {}
            return
        hosts = ["*", *(host_of(each.url) for each in indexes), *self._trusted]
        proxy, end = proxy_to(hosts, trusted=self._trusted)
        try:
            yield {
                **{name: proxy for each in _PROXIES for name in (each, each.upper())},
                # The deployment's own index may have any address, and is reached directly.
                "NO_PROXY": ",".join(_hosts_in(self._env)),
            }
        finally:
            end()

    def walls(
        self, folder: Path, interpreter: Interpreter, own: Path | None = None
    ) -> tuple[list[str], list[int]]:
        """Return the command line to prefix to uv's, and the descriptors to pass to it."""
        if self._bubblewrap is None:
            return [], []
        filter_fd = memory_file("seccomp", build_filter(network=Reach.HOST))
        argv = [str(self._bubblewrap), *separate(as_root=os.geteuid() == 0), *system_folders()]
        argv += ["--dev", "/dev", "--tmpfs", "/tmp"]  # noqa: S108 - its own
        seen = (*_places(self._env), self._program, interpreter.prefix, *((own,) if own else ()))
        for place in (*_ETC, *seen):
            argv += ["--ro-bind-try", str(place), str(place)]
        argv += ["--bind", str(folder), str(folder), "--remount-ro", "/", "--chdir", "/"]
        return [*argv, "--seccomp", str(filter_fd), "--"], [filter_fd]


@contextmanager
def _config(
    folder: Path, own: Path | None, indexes: Sequence[OpenIndex]
) -> Iterator[Sequence[str]]:
    """Yield the arguments that configure the tenant's own indexes; their file is temporary."""
    if own is None and not indexes:
        yield ["--no-config"]
        return
    text = "" if own is None else _OWN_INDEX.format(url=json.dumps(own.as_uri()))
    with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".toml") as file:
        file.write(text + as_config(indexes))
        file.flush()
        yield ["--config-file", file.name]


def _changed(cache: Path, since: float) -> list[Path]:
    """Return what uv wrote into its cache since a time: complete wheels, and temporary files."""
    found = []
    for bucket in cache.iterdir():
        for place in [bucket] if bucket.name.startswith(".tmp") else bucket.glob("*"):
            try:
                if place.lstat().st_ctime >= since:
                    found.append(place)
            except OSError:
                continue
    return found


def _places(env: Mapping[str, str]) -> list[Path]:
    """Return the paths on this machine in the settings: certificates, folders of wheels."""
    parts = {part for value in env.values() for part in (value, *re.split(r"[\s,:]+", value))}
    found = [Path(part) for part in sorted(parts) if part.startswith("/")]
    return [place for place in found if len(place.parts) > 1 and place.exists()]


def _hosts_in(env: Mapping[str, str]) -> list[str]:
    """Return the hosts of the URLs in the settings."""
    parts = {part for value in env.values() for part in re.split(r"[\s,]+", value)}
    return sorted({host for each in parts if "://" in each and (host := urlsplit(each).hostname)})


def find_uv() -> Path:
    """Return the uv program installed with this suite."""
    from uv import find_uv_bin

    return Path(find_uv_bin())


def uv_environment(
    env: Mapping[str, str], *, wheelhouse: Path | None = None, offline: bool = False
) -> dict[str, str]:
    """Return the part of a service's environment that uv needs to find and trust the index."""
    kept = {name: env[name] for name in _PASSED_ON if env.get(name)}
    for pip, uv in _FROM_PIP.items():
        if env.get(pip) and uv not in kept:
            kept[uv] = env[pip]
    if wheelhouse is not None:
        others = kept.get("UV_FIND_LINKS", "")
        kept["UV_FIND_LINKS"] = f"{wheelhouse},{others}" if others else str(wheelhouse)
    if offline:
        kept["UV_OFFLINE"] = "1"
    return {
        **kept,
        "PATH": "/usr/bin:/bin",
        "UV_NO_PROGRESS": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        "LC_ALL": "C.UTF-8",
    }


async def _spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    stdin: str,
    timeout_s: float,
    pass_fds: Sequence[int],
) -> _Done:
    try:
        done = await child.run(
            argv,
            stdin=stdin.encode(),
            env=env,
            timeout_s=timeout_s,
            output_bytes_max=16 * _OUTPUT_BYTES_MAX,  # above that an error, below it is cut
            keep_stderr=True,
            umask=0o022,
            pass_fds=pass_fds,
        )
    except TimeoutError:
        raise UvError(f"not finished within {timeout_s:.0f} s", retryable=True) from None
    except child.OutputTooLargeError as error:
        raise UvError(str(error), retryable=False) from None
    return _Done(
        done.code,
        done.stdout[:_OUTPUT_BYTES_MAX].decode("utf-8", "replace"),
        done.stderr[:_OUTPUT_BYTES_MAX].decode("utf-8", "replace"),
    )


def _error(done: _Done, indexes: Sequence[OpenIndex]) -> UvError:
    if "os error 28" in done.stderr:  # ENOSPC: no space or no inodes
        return disk_full()
    # Passwords are not known to appear in uv's output; masked to be certain.
    mask = Mask(each.password for each in indexes if each.password)
    said = mask.text(done.stderr or done.stdout or f"uv ended with status {done.status}")
    text = without_addresses(said)
    if indexes and _REFUSED_US.search(said):
        names = ", ".join(each.name for each in indexes)
        return UvError(
            f"a package index rejects the credentials; check the secrets of {names}: {text}",
            retryable=False,
            reason=INDEX_REFUSES,
        )
    unreachable = "Failed to fetch" in done.stderr or "error sending request" in done.stderr
    return UvError(text, retryable=unreachable or done.status not in (_UNSATISFIABLE, 2))
