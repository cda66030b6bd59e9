"""Byte-compiles an environment in a sandbox like a node's: compilers can be attacked, too.

The sandbox only reads the packages, and writes elsewhere: they are hard links into a cache, so
writing to one could change what others get. Its output is then moved over file by file.
"""

from __future__ import annotations

import asyncio
import os
import stat
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import structlog

from services.runner.domain.limits import Limits
from services.runner.gateways.disk import DiskFullError, folder_bytes, remove_folder, within
from services.runner.gateways.sandbox.port import (
    Interpreter,
    Sandbox,
    SandboxDied,
    SandboxHost,
    SandboxSpec,
)

log = structlog.get_logger()

_TIMEOUT_S: Final = 300.0
# A file of 2 MiB can take 1 GiB to compile; no hand-written module is that large.
_SOURCE_BYTES_MAX: Final = 2 * 1024 * 1024
# For all files together; the largest packages stay far below.
_BYTES_MAX: Final = 1024 * 1024 * 1024

# Also runs on Python 3.9. One process per core, as in uv; small files first in each, since one that
# exhausts the memory ends the rest.
_CODE: Final = """
import importlib.util
import os
import py_compile
import stat
import warnings


def main(source, target, each_bytes_max, bytes_max):
    os.umask(0o022)
    warnings.simplefilter("ignore")
    found = []
    for folder, _, names in os.walk(source):
        for name in names:
            path = os.path.join(folder, name)
            known = os.lstat(path)
            if (
                name.endswith(".py")
                and stat.S_ISREG(known.st_mode)
                and known.st_size <= each_bytes_max
            ):
                found.append((known.st_size, path))
    found.sort()
    cores = len(os.sched_getaffinity(0))
    children = []
    for at in range(1, cores):
        child = os.fork()
        if child == 0:
            try:
                compile_all(found[at::cores], source, target, bytes_max // cores)
            finally:
                os._exit(0)
        children.append(child)
    compile_all(found[::cores], source, target, bytes_max // cores)
    for child in children:
        os.waitpid(child, 0)
    os.umask(0o077)


def compile_all(share, source, target, bytes_max):
    written = 0
    for _, path in share:
        if written > bytes_max:
            break
        place = target + importlib.util.cache_from_source(path)[len(source):]
        try:
            py_compile.compile(
                path,
                place,
                doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )
            written += os.stat(place).st_size
        except Exception:
            continue  # packages carry files for other Pythons
"""
_INPUTS: Final = {"source": "str", "target": "str", "each_bytes_max": "int", "bytes_max": "int"}
_LOAD: Final = {
    "op": "load",
    "code": _CODE,
    "main": "main",
    "inputs": [
        {"name": name, "type": {"t": kind}, "kind": "positional"} for name, kind in _INPUTS.items()
    ],
    "outputs": [{"name": "result", "type": {"t": "none"}}],
}


@asynccontextmanager
async def compiler(
    host: SandboxHost, interpreter: Interpreter, folder: Path
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Start a sandbox while a folder is being filled; the function yielded compiles its modules.

    Best effort: without bytecode imports are only slower.
    """
    target = folder.with_name(f"bytecode-{uuid.uuid4()}")
    target.mkdir()
    # Under root the sandbox has another user; nobody else knows the folder's name.
    target.chmod(0o777 if os.geteuid() == 0 else 0o700)
    spec = SandboxSpec(
        sandbox_id=uuid.uuid4(),
        python=interpreter.executable,
        prefix=interpreter.prefix,
        agent=interpreter.agent,
        environment=folder,
        limits=Limits(),
        binds=[(target, str(target))],
    )
    starting = asyncio.create_task(_start(host, spec))

    async def compile_modules() -> None:
        try:
            sandbox = await starting
            async with asyncio.timeout(_TIMEOUT_S):
                await within(
                    _compile(sandbox, target),
                    used=partial(folder_bytes, target),
                    bytes_max=_BYTES_MAX,
                )
        except (SandboxDied, TimeoutError, DiskFullError) as problem:
            log.warning("bytecode_incomplete", fault=str(problem)[:500] or "out of time")
        await _end(starting)  # nothing writes there any more
        await asyncio.to_thread(take_over, target, folder)

    try:
        yield compile_modules
    finally:
        await _end(starting)
        await asyncio.to_thread(remove_folder, target)


async def _start(host: SandboxHost, spec: SandboxSpec) -> Sandbox:
    sandbox = await host.start(spec)
    try:
        loaded = await sandbox.request(_LOAD)
        if loaded.header.get("op") != "loaded":
            raise SandboxDied(f"the compiler does not load: {loaded.header.get('error')}")
    except BaseException:
        await sandbox.kill()
        raise
    return sandbox


async def _end(starting: asyncio.Task[Sandbox]) -> None:
    """End the sandbox, even while it starts; its own errors are raised where it is awaited."""
    starting.cancel()
    await asyncio.wait({starting})
    if not starting.cancelled() and starting.exception() is None:
        await starting.result().kill()


async def _compile(sandbox: Sandbox, target: Path) -> None:
    values = (sandbox.environment_path, str(target), _SOURCE_BYTES_MAX, _BYTES_MAX)
    texts = [msgspec.json.encode(value) for value in values]
    given = [[name, len(text), []] for name, text in zip(_INPUTS, texts, strict=True)]
    call = {"op": "call", "id": 0, "inputs": given, "output_bytes_max": 1024}
    answer = await sandbox.request(call, b"".join(texts))
    if "error" in answer.header:
        raise SandboxDied(f"the compiler failed: {answer.header['error']}")


def take_over(target: Path, folder: Path) -> None:
    """Move compiled modules beside their sources, and ignore anything else in the folder."""
    target = target.resolve()
    for parent, _, names in os.walk(folder):
        made = target / Path(parent).relative_to(folder) / "__pycache__"
        place = Path(parent, "__pycache__")
        if made.resolve() != made or not made.is_dir() or place.is_symlink() or place.is_file():
            continue
        place.mkdir(mode=0o755, exist_ok=True)
        modules = {name.removesuffix(".py") for name in names if name.endswith(".py")}
        for entry in made.glob("*.pyc"):
            known = entry.lstat()
            if not stat.S_ISREG(known.st_mode) or known.st_nlink != 1:
                continue
            if entry.name.partition(".")[0] in modules:
                os.chown(entry, os.geteuid(), os.getegid())
                entry.chmod(0o644)
                entry.replace(place / entry.name)
