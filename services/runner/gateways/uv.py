"""uv: pins requirements, fetches wheels, and nothing else: no source is built, no code is run."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.kit import child
from services.runner.domain.environments import without_addresses

_RESOLVE_S: Final = 60.0
_INSTALL_S: Final = 600.0
_COMPILE_S: Final = 300.0
_OUTPUT_BYTES_MAX: Final = 4 * 1024 * 1024
_UNSATISFIABLE: Final = 1
# What an operator has set for pip goes for uv too, which does not read it itself.
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
# Wheels alone: a source distribution runs its author's code while it is built.
_WHEELS_ONLY: Final = ("--only-binary", ":all:", "--no-config", "--quiet", "--color", "never")


class UvError(Exception):
    """What uv said, fit for a user's eyes; `retryable` when the index did not answer."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


@dataclass(frozen=True, slots=True)
class _Done:
    status: int
    stdout: str
    stderr: str


class Uv:
    """Runs uv with a cache beside the environments, so that wheels are linked and not copied."""

    def __init__(self, *, cache: Path, env: Mapping[str, str], bubblewrap: Path | None) -> None:
        self._program = _find_uv()
        self._cache = cache
        self._env = _environment(env, cache)
        self._bubblewrap = bubblewrap

    async def resolve(
        self, requirements: Sequence[str], *, python_version: str, python: Path
    ) -> str:
        """Pin requirements for this platform to exact versions with hashes; raises UvError."""
        done = await self._run(
            [
                *("pip", "compile", "-", "--generate-hashes", "--no-header", "--no-annotate"),
                *("--python", str(python), "--python-version", python_version, *_WHEELS_ONLY),
            ],
            stdin="\n".join(requirements),
            timeout_s=_RESOLVE_S,
        )
        if done.status != 0:
            raise _error(done)
        return done.stdout

    async def install(self, lock: Path, target: Path, *, python: Path) -> None:
        """Fetch the locked wheels into a folder, each checked against its hash; raises UvError."""
        done = await self._run(
            [
                *("pip", "install", "--python", str(python), "--target", str(target)),
                *("--require-hashes", "--no-deps", "--link-mode", "hardlink", *_WHEELS_ONLY),
                *("-r", str(lock)),
            ],
            stdin="",
            timeout_s=_INSTALL_S,
        )
        if done.status != 0:
            raise _error(done)

    async def compile_bytecode(self, target: Path, *, python: Path, prefix: Path) -> None:
        """Compile a folder, isolated from the network and without reading any `.pth`.

        A file that does not compile is not a fault: packages carry files for other Pythons.
        """
        argv = [str(python), "-I", "-S", "-m", "compileall", "-q", "-q"]
        argv += ["--invalidation-mode", "unchecked-hash"]
        if self._bubblewrap is not None:
            argv = [*_compile_sandbox(self._bubblewrap, target, prefix), *argv, "/target"]
        else:
            argv.append(str(target))
        await _spawn(argv, env={"LC_ALL": "C.UTF-8"}, stdin="", timeout_s=_COMPILE_S)

    async def _run(self, arguments: Sequence[str], *, stdin: str, timeout_s: float) -> _Done:
        self._cache.mkdir(parents=True, exist_ok=True)
        return await _spawn(
            [str(self._program), *arguments], env=self._env, stdin=stdin, timeout_s=timeout_s
        )


def _find_uv() -> Path:
    from uv import find_uv_bin

    return Path(find_uv_bin())


def _environment(env: Mapping[str, str], cache: Path) -> dict[str, str]:
    kept = {name: env[name] for name in _PASSED_ON if env.get(name)}
    for pip, uv in _FROM_PIP.items():
        if env.get(pip) and uv not in kept:
            kept[uv] = env[pip]
    return {
        **kept,
        "PATH": "/usr/bin:/bin",
        "HOME": str(cache),
        "UV_CACHE_DIR": str(cache),
        "UV_NO_PROGRESS": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        "LC_ALL": "C.UTF-8",
    }


def _compile_sandbox(bubblewrap: Path, target: Path, prefix: Path) -> list[str]:
    argv = [str(bubblewrap), "--unshare-all", "--die-with-parent", "--new-session"]
    argv += ["--cap-drop", "ALL", "--ro-bind", "/usr", "/usr"]
    for name in ("/bin", "/lib", "/lib64"):
        path = Path(name)
        if path.is_symlink():
            argv += ["--symlink", str(path.readlink()), name]
        elif path.is_dir():
            argv += ["--ro-bind", name, name]
    if not prefix.is_relative_to("/usr"):
        argv += ["--ro-bind", str(prefix), str(prefix)]
    return [*argv, "--dev", "/dev", "--bind", str(target), "/target", "--chdir", "/", "--"]


async def _spawn(
    argv: Sequence[str], *, env: Mapping[str, str], stdin: str, timeout_s: float
) -> _Done:
    try:
        done = await child.run(
            argv,
            stdin=stdin.encode(),
            env=env,
            timeout_s=timeout_s,
            output_bytes_max=16 * _OUTPUT_BYTES_MAX,  # cut, not refused, up to here
            keep_stderr=True,
            umask=0o022,
        )
    except TimeoutError:
        raise UvError(f"not done within {timeout_s:.0f} s", retryable=True) from None
    except child.OutputTooLargeError as error:
        raise UvError(str(error), retryable=False) from None
    return _Done(
        done.code,
        done.stdout[:_OUTPUT_BYTES_MAX].decode("utf-8", "replace"),
        done.stderr[:_OUTPUT_BYTES_MAX].decode("utf-8", "replace"),
    )


def _error(done: _Done) -> UvError:
    text = without_addresses(done.stderr or done.stdout or f"uv ended with status {done.status}")
    unreachable = "Failed to fetch" in done.stderr or "error sending request" in done.stderr
    return UvError(text, retryable=unreachable or done.status not in (_UNSATISFIABLE, 2))


def folder_bytes(folder: Path) -> int:
    """Sum the sizes of a folder's files."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(parent) / name).lstat().st_size
    return total


def remove_folder(folder: Path) -> None:
    """Remove a folder and what is in it; one that is gone already is fine."""
    shutil.rmtree(folder, ignore_errors=True)
