"""What goes wrong on the caller's own side is told in a sentence, and nothing is half-written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from qflow.cli.app import main

from tests.support.suite import Suite


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


Qflow = Callable[..., Done]
# A mount of one's own, as whoever runs the tests may make it.
OWN_MOUNTS = ["unshare", "--user", "--map-root-user", "--mount"]
# Do a command, and say last how much memory it took at most: by what the kernel counts of this
# program alone, for `ru_maxrss` begins with what the process had that started it.
MEASURED = """
import sys
from pathlib import Path
from qflow.cli.app import main
code = main(sys.argv[1:])
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) // 1024, file=sys.stderr)
sys.exit(code)
"""
NOT_THERE = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def qflow(
    suite: Suite,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Qflow:
    """Call the command in this process: starting one takes longer than all else here."""
    for name in [each for each in os.environ if each.startswith("QFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("QFLOW_HOME", str(suite.home.root))
    monkeypatch.setenv("GRPC_VERBOSITY", "NONE")
    monkeypatch.chdir(tmp_path)

    def called(*arguments: str) -> Done:
        code = main(list(arguments))
        return Done(code, *capsys.readouterr())

    return called


def put(qflow: Qflow, path: Path, content: bytes) -> str:
    path.write_bytes(content)
    done = qflow("files", "put", str(path))
    assert 0 == done.returncode, done.stderr
    return done.stdout.strip()


def test_a_name_with_spaces_and_pictures_comes_back_into_a_folder(
    qflow: Qflow, tmp_path: Path
) -> None:
    name = "my 📄 größe; $(rm) 'x'.txt"
    file = put(qflow, tmp_path / name, b"whole")
    (tmp_path / "a folder").mkdir()
    done = qflow("files", "get", file, "a folder")
    assert (0, f"a folder/{name}\n") == (done.returncode, done.stdout), done.stderr
    assert b"whole" == (tmp_path / "a folder" / name).read_bytes()
    assert [name] == [each.name for each in (tmp_path / "a folder").iterdir()]


def test_a_name_as_long_as_names_may_be_is_written(qflow: Qflow, tmp_path: Path) -> None:
    name = "n" * 255
    file = put(qflow, tmp_path / "short", b"whole")
    assert 0 == qflow("files", "get", file, name).returncode
    assert b"whole" == (tmp_path / name).read_bytes()
    refused = qflow("files", "get", file, name + "n")
    assert (2, f"qflow: {name}n was not written: that name is too long. Say a shorter one\n") == (
        refused.returncode,
        refused.stderr,
    )


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run([*OWN_MOUNTS, "true"], capture_output=True, check=False).returncode != 0,
    reason="no mount can be made here",
)
def test_a_full_disk_is_told_and_nothing_of_the_file_is_left(qflow: Qflow, tmp_path: Path) -> None:
    file = put(qflow, tmp_path / "large", bytes(2_000_000))
    (tmp_path / "small").mkdir()
    filled = 'mount -t tmpfs -o size=64k small small; "$@"; code=$?; ls -A small; exit $code'
    command = [sys.executable, "-m", "qflow", "files", "get", file, "small/it"]
    done = subprocess.run(
        [*OWN_MOUNTS, "sh", "-c", filled, "sh", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (2, "") == (done.returncode, done.stdout)
    said = "qflow: small/it was not written: there is no room left on that disk."
    assert done.stderr.startswith(said)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_file_beyond_two_gigabytes_goes_there_and_back_in_little_memory(
    qflow: Qflow, tmp_path: Path
) -> None:
    size = 2**31 + 7  # more than a signed 32-bit number counts
    with (tmp_path / "large").open("wb") as large:
        large.seek(size - 4)
        large.write(b"last")

    def measured(*arguments: str) -> tuple[str, int]:
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, "files", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert 0 == done.returncode, done.stderr
        return done.stdout.strip(), int(done.stderr.splitlines()[-1])

    file, sending_mib = measured("put", "large")
    (tmp_path / "large").unlink()
    _, fetching_mib = measured("get", file, "back")
    back = tmp_path / "back"
    assert size == back.stat().st_size
    with back.open("rb") as read:
        read.seek(-8, os.SEEK_END)
        assert b"\0\0\0\0last" == read.read()
    assert max(sending_mib, fetching_mib) < 200
    assert 0 == qflow("files", "rm", file).returncode


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["get", "FILE", "none/it"], 2, "none/it was not written: there is no folder none."),
        (["get", NOT_THERE, "it"], 3, "there is no such file"),
        (["get", "nonsense", "it"], 3, "file_id: must be a valid UUID"),
        (["put", "/dev/zero"], 2, "/dev/zero is no ordinary file"),
        (["put", "none"], 2, "does not exist"),
    ],
)
def test_what_cannot_be_written_or_read_is_one_line_and_leaves_nothing(
    qflow: Qflow, tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    file = put(qflow, tmp_path / "there", b"whole")
    done = qflow("files", *(file if each == "FILE" else each for each in arguments))
    assert code == done.returncode
    assert said in " ".join(done.stderr.split())
    assert 1 == done.stderr.count("UUID") + ("UUID" not in said)
    assert {"there"} == {each.name for each in tmp_path.iterdir()} - {".config", ".cache"}


def test_a_token_that_no_longer_holds_is_told_with_what_to_type(
    qflow: Qflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QFLOW_TOKEN", "qft_expired")
    done = qflow("ls")
    assert 3 == done.returncode
    assert "sign in again with `qflow login ADDRESS`" in done.stderr
