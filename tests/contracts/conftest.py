"""The contract as descriptors, read from the protos themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

# Registers the option that rules are read by.
from qflow.auth.v1 import auth_pb2 as _auth_pb2  # noqa: F401

ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "protos"


@pytest.fixture(scope="session")
def contract(tmp_path_factory: pytest.TempPathFactory) -> list[FileDescriptorProto]:
    """Every proto of ours, with comments."""
    image = tmp_path_factory.mktemp("contract") / "image.binpb"
    names = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("qflow/**/*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", f"-I{PROTOS / 'vendor'}"]
    command += [f"--descriptor_set_out={image}", "--include_source_info", *names]
    subprocess.run(command, check=True)
    files = FileDescriptorSet.FromString(image.read_bytes()).file
    assert len(names) == len(files) > 0
    return [*files]
