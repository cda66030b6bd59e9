"""Generate the Python stubs from the protos, or check that the committed ones are what that gives.

`python protos/generate.py` writes clients/python/qflow/<package>/v1/*_pb2*.py[i], the stubs of the
vendored rules in clients/python/buf, and clients/python/qflow/service_config.json, which calls are
tried again by. `--check` generates into a temporary folder and fails when a file differs, is
missing or is left over.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from service_config import service_config

PROTOS = Path(__file__).resolve().parent
TARGET = PROTOS.parent / "clients" / "python"
TOOLS = Path(sys.executable).parent
SERVICE_CONFIG = Path("qflow/service_config.json")
PACKAGE_DOC = '"""Generated from protos/{path}; see `make proto`."""\n'


def generate(target: Path) -> None:
    """Write all stubs below `target`, a package file in each folder."""
    own = sorted(PROTOS.glob("qflow/**/*.proto"))
    vendored = [PROTOS / "vendor/buf/validate/validate.proto"]
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"-I{PROTOS}",
        f"-I{PROTOS / 'vendor'}",
        f"--plugin=protoc-gen-mypy={TOOLS / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={TOOLS / 'protoc-gen-mypy_grpc'}",
    ]
    names = [str(path.relative_to(PROTOS)) for path in own]
    messages = [f"--python_out={target}", f"--mypy_out=quiet:{target}"]
    run([*command, *messages, *names])
    run([*command, *messages, *(str(path.relative_to(PROTOS / "vendor")) for path in vendored)])
    services = [name for name in names if name.endswith("_service.proto")]
    run([*command, f"--grpc_python_out={target}", f"--mypy_grpc_out=quiet:{target}", *services])
    for folder in sorted({path.parent for path in target.rglob("*_pb2.py")}):
        write_package_files(folder, target)
    with tempfile.NamedTemporaryFile() as described:
        run([*command, f"--descriptor_set_out={described.name}", *names])
        contract = FileDescriptorSet.FromString(Path(described.name).read_bytes())
    (target / SERVICE_CONFIG).write_text(service_config(contract), encoding="utf-8")


def write_package_files(folder: Path, target: Path) -> None:
    """Make `folder` and its parents regular packages; protoc writes none."""
    while folder not in (target, target / "qflow"):
        path = folder.relative_to(target)
        (folder / "__init__.py").write_text(PACKAGE_DOC.format(path=path), encoding="utf-8")
        folder = folder.parent


def run(command: list[str]) -> None:
    """Run a generator; its own message says what is wrong."""
    if subprocess.run(command, check=False).returncode != 0:
        sys.exit("protoc failed; see above")


def stubs(root: Path) -> set[Path]:
    """All generated files below `root`, relative."""
    found = {path.relative_to(root) for path in root.rglob("*_pb2*.py*")}
    packages = {path.parent / "__init__.py" for path in found}
    packages.add(SERVICE_CONFIG)
    return {path for path in found | packages if "__pycache__" not in path.parts}


def check() -> int:
    """Say which committed stubs differ from what the protos give."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        names = stubs(fresh) | stubs(TARGET)
        wrong = sorted(
            name
            for name in names
            if not (fresh / name).exists()
            or not (TARGET / name).exists()
            or not filecmp.cmp(fresh / name, TARGET / name, shallow=False)
        )
    for name in wrong:
        print(f"stale stub: clients/python/{name}; run `make proto`", file=sys.stderr)
    return 1 if wrong else 0


def main() -> int:
    """Generate, or check with `--check`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail on a difference")
    if parser.parse_args().check:
        return check()
    for name in stubs(TARGET):
        (TARGET / name).unlink(missing_ok=True)
    generate(TARGET)
    shutil.rmtree(TARGET / "__pycache__", ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
