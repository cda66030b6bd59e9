"""How each client and its example are compiled, and what a machine needs for that."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = ROOT / "clients"
# Where compilers keep what need not be made again; CI keeps it from run to run.
KEPT = Path(os.environ.get("QFLOW_CI_FOLDER") or ROOT / "build") / "clients"
_WORKERS = ThreadPoolExecutor(2)


@dataclass(frozen=True, slots=True)
class Build:
    """What a language needs here, and how its example becomes a command."""

    needs: Sequence[str]
    make: Callable[[], list[str]]


def run(
    command: Sequence[str | Path], folder: Path = ROOT, env: Mapping[str, str] | None = None
) -> str:
    """Run a compiler; what it said is the failure."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert 0 == done.returncode, f"{' '.join(map(str, command))}\n{said[-20_000:]}"
    return said


def generate(*languages: str) -> None:
    """Make the stubs that are not committed."""
    run([sys.executable, CLIENTS / "generate.py", *languages])


def python() -> list[str]:
    """Nothing is compiled: the environment of the tests has the client."""
    return [sys.executable, str(ROOT / "examples" / "client" / "trip.py")]


def go() -> list[str]:
    """Compile the Go module and its example; its committed stubs are checked first."""
    run([sys.executable, CLIENTS / "generate.py", "--check"])
    assert "" == run(
        ["gofmt", "-l", "client.go", "refusal.go", "watch.go", "example"], CLIENTS / "go"
    )
    run(["go", "vet", ".", "./example"], CLIENTS / "go")
    run(["go", "build", "-o", KEPT / "go" / "trip", "./example"], CLIENTS / "go")
    return [str(KEPT / "go" / "trip")]


def typescript() -> list[str]:
    """Compile the package, then the example against the package by its name."""
    folder = CLIENTS / "typescript"
    generate("typescript")
    for project in ("tsconfig.json", "example/tsconfig.json"):
        run(["node_modules/.bin/tsc", "-p", project], folder)
    return ["node", str(folder / "example" / "dist" / "trip.js")]


def java() -> list[str]:
    """Make the artifact, then compile the example against it."""
    folder = CLIENTS / "java"
    jar = folder / "target" / "qflow-client-0.1.0.jar"
    if changed("java", folder / "src", folder / "pom.xml") or not jar.exists():
        generate("java")
        run(["mvn", "-q", "-B", "-ntp", "package"], folder)
        keep("java", folder / "src", folder / "pom.xml")
    path = f"{jar}:{(folder / 'target' / 'classpath').read_text('utf-8')}"
    example = folder / "example" / "Trip.java"
    run(["javac", "-encoding", "UTF-8", "-cp", path, "-d", KEPT / "java", example])
    return ["java", "-cp", f"{KEPT / 'java'}:{path}", "Trip"]


def rust() -> list[str]:
    """Compile the crate and its example."""
    target = {"CARGO_TARGET_DIR": str(KEPT / "rust")}
    run(["cargo", "fmt", "--check"], CLIENTS / "rust")
    run(["cargo", "build", "-q", "--example", "trip"], CLIENTS / "rust", target)
    return [str(KEPT / "rust" / "debug" / "examples" / "trip")]


def cpp() -> list[str]:
    """Compile the library and its example against the distribution's gRPC."""
    target, source = KEPT / "cpp", CLIENTS / "cpp"
    cached = target / "CMakeCache.txt"
    # What was kept of another checkout is of no use.
    other = cached.exists() and f"HOME_DIRECTORY:INTERNAL={source}\n" not in cached.read_text()
    run(["cmake", *(["--fresh"] if other else []), "-S", source, "-B", target])
    run(["cmake", "--build", target, "-j", str(os.cpu_count() or 1)])
    return [str(target / "trip")]


def changed(name: str, *more: Path) -> bool:
    """Whether the contract or more has other bytes than when `keep` was called last."""
    stamp = KEPT / f"{name}.sha256"
    return not stamp.exists() or stamp.read_text() != digest(*more)


def keep(name: str, *more: Path) -> None:
    """Remember what was compiled."""
    (KEPT / f"{name}.sha256").write_text(digest(*more))


def digest(*more: Path) -> str:
    """Give the SHA-256 of the contract, of what generates from it, and of more files."""
    whole = hashlib.sha256()
    for place in (ROOT / "protos" / "qflow", CLIENTS / "generate.py", *more):
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file():
                whole.update(str(path).encode() + path.read_bytes())
    return whole.hexdigest()


BUILDS: Mapping[str, Build] = {
    "python": Build([], python),
    "go": Build(["go"], go),
    "typescript": Build(["node", "npm"], typescript),
    "java": Build(["java", "javac", "mvn"], java),
    "rust": Build(["cargo", "cc"], rust),
    "cpp": Build(["cmake", "c++", "protoc", "grpc_cpp_plugin"], cpp),
}


def required() -> bool:
    """Whether a machine that lacks something fails."""
    return bool(os.environ.get("CI") or os.environ.get("QFLOW_REQUIRE_CLIENTS"))


def lacking(*programs: str) -> list[str]:
    """Which of these this machine does not have."""
    return [each for each in programs if shutil.which(each) is None]


def insist(*programs: str) -> None:
    """Skip, or fail in CI, where this machine lacks a program."""
    if missing := lacking(*programs):
        said = f"NOT COMPILED HERE: this machine has no {', '.join(missing)}"
        pytest.fail(said) if required() else pytest.skip(said)


@cache
def _making(language: str) -> Future[list[str]]:
    """Begin to compile, once; two at a time, for that is what most machines can do."""
    return _WORKERS.submit(BUILDS[language].make)


def built(language: str) -> list[str]:
    """Compile once; give the command that runs the example.

    Where all are compiled in any case, the next ones begin while the first are tried.
    """
    insist(*BUILDS[language].needs)
    KEPT.mkdir(parents=True, exist_ok=True)
    if required():
        for each, build in BUILDS.items():
            if not lacking(*build.needs):
                _making(each)
    return _making(language).result()
