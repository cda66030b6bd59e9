"""The example of every client does the whole trip: on plain text, on TLS, on mutual TLS."""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.clients.builds import BUILDS, built
from tests.clients.door import Door
from tests.support.suite import Suite
from tests.support.suite_fixtures import discard

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]

CERTIFICATES = (sys.executable, "-m", "services.standalone", "certificates")
SERVICES = ("registry", "orchestrator", "runner")
languages = pytest.mark.parametrize("language", BUILDS)


@pytest.fixture(scope="module")
def tls_suite() -> Iterator[Suite]:
    """A suite that speaks TLS to its users."""
    folder = Path(tempfile.mkdtemp(prefix="qfs-", dir="/tmp"))
    running = Suite(folder, {"QFLOW_TLS": "1"})
    try:
        yield running.start()
    finally:
        running.stop()
        discard(folder)


@pytest.fixture(scope="module")
def certificates() -> Iterator[Path]:
    """An authority that no suite knows, and certificates of it."""
    with tempfile.TemporaryDirectory(prefix="qfc-") as made:
        folder = Path(made)
        subprocess.run(
            [*CERTIFICATES, "--folder", made, "--host", "127.0.0.1", "--days", "2"],
            check=True,
            capture_output=True,
        )
        yield folder


@languages
def test_a_trip_on_plain_text(language: str, suite: Suite) -> None:
    travel(built(language), suite)


@languages
def test_a_trip_on_tls(language: str, tls_suite: Suite) -> None:
    told = {"QFLOW_CA_FILE": str(tls_suite.home.root / "tls" / "authority.crt")}
    travel(built(language), tls_suite, told)


@languages
def test_a_trip_on_mutual_tls(language: str, suite: Suite, certificates: Path) -> None:
    context = ssl.create_default_context(
        ssl.Purpose.CLIENT_AUTH, cafile=str(certificates / "authority.crt")
    )
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificates / "registry.crt", certificates / "registry.key")
    context.set_alpn_protocols(["h2"])
    told = {
        "QFLOW_CA_FILE": str(certificates / "authority.crt"),
        "QFLOW_CERTIFICATE_FILE": str(certificates / "runner.crt"),
        "QFLOW_KEY_FILE": str(certificates / "runner.key"),
    }
    travel(built(language), suite, told, context)


@languages
def test_a_server_of_another_authority_is_not_believed(
    language: str, tls_suite: Suite, certificates: Path
) -> None:
    env = environment(tls_suite, {}) | {"QFLOW_CA_FILE": str(certificates / "authority.crt")}
    done = subprocess.run(
        built(language), env=env, capture_output=True, text=True, check=False, timeout=90
    )
    assert 0 != done.returncode
    assert "signed in" not in done.stdout
    assert done.stderr.strip(), "it ended without a word"


def travel(
    command: Sequence[str],
    suite: Suite,
    told: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Run an example, cut its connections while it watches, and read what it printed."""
    with ExitStack() as stack:
        doors = {each: stack.enter_context(Door(suite.endpoints[each], tls)) for each in SERVICES}
        said = listen(command, environment(suite, doors) | dict(told or {}), doors["orchestrator"])
        door = doors["orchestrator"]
        assert 1 == door.cuts, said
        assert door.entries >= 2, "it did not come back after the cut"
    run_id = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    expected = [
        "signed in: owner@localhost",
        f"started once: {run_id}",
        r"watching again after revision [1-9]\d*",
        "number: 9007199254740994",
        "text: Zoë · 東京 🚲: 9007199254740994",
        "file: grüße.txt 240000 bytes",
        "refused: .*INVALID_REQUEST",
        "  workflow_id: must be a valid UUID",
        "  priority: must be greater than or equal to -100 and less than or equal to 100",
    ]
    assert len(expected) == len(said), "\n".join(said)
    for pattern, line in zip(expected, said, strict=True):
        assert re.fullmatch(pattern, line), f"{line!r} is not {pattern!r}"


def listen(command: Sequence[str], env: Mapping[str, str], door: Door) -> list[str]:
    """Run it to its end; cut the door once, when it watches again."""
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as complaints,
        subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=complaints, encoding="utf-8"
        ) as running,
    ):
        assert running.stdout is not None
        said = []
        for line in running.stdout:
            said.append(line.rstrip("\n"))
            if line.startswith("watching again"):
                door.cut_after_an_answer()
        code = running.wait(60)
        complaints.seek(0)
        assert 0 == code, "\n".join(said) + complaints.read()
    return said


def environment(suite: Suite, doors: Mapping[str, Door]) -> dict[str, str]:
    """What an example is told, and nothing else of Qflow's."""
    inherited = {name: v for name, v in os.environ.items() if not name.startswith("QFLOW_")}
    addresses = {
        f"QFLOW_{each.upper()}": doors[each].address if each in doors else suite.endpoints[each]
        for each in SERVICES
    }
    password = (suite.home.secrets / "owner.password").read_text("utf-8").strip()
    return {
        **inherited,
        **addresses,
        "QFLOW_EMAIL": "owner@localhost",
        "QFLOW_PASSWORD": password,
    }
