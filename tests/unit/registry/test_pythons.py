from __future__ import annotations

import sys
from pathlib import Path

from services.kit.pythons import ask, closest, find_pythons, version_key


def test_this_python_is_found_as_the_program_it_is() -> None:
    version = ".".join(map(str, sys.version_info[:2]))
    found = find_pythons()[version]
    assert found.full_version == ".".join(map(str, sys.version_info[:3]))
    assert found.path.read_bytes()[:2] != b"#!"
    assert found.prefix == Path(sys.base_prefix).resolve()


def test_versions_stand_in_their_order_and_the_closest_is_newer() -> None:
    versions = list(find_pythons())
    assert versions == sorted(versions, key=version_key)
    newest, oldest = closest("3.99"), closest("3.0")
    assert newest is not None
    assert oldest is not None
    assert (newest.version, oldest.version) == (versions[-1], versions[0])


def test_a_shim_is_not_an_interpreter(tmp_path: Path) -> None:
    shim = tmp_path / "python3.12"
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    shim.chmod(0o755)
    assert ask(shim) is None
    assert ask(tmp_path / "missing") is None
