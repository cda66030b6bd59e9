"""The guide to grpcurl, with a grpcurl that was built from its module."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.acceptance.test_grpcurl import GUIDE, PORTS, a_checkout, blocks, undrained
from tests.clients.builds import KEPT, insist, run
from tests.support.suite import Suite

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]

MODULE = "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3"


def test_every_recipe_works_as_it_stands(suite: Suite) -> None:
    insist("go")
    program = KEPT / "grpcurl"
    if not program.exists():
        run(["go", "install", MODULE], env={"GOBIN": str(KEPT)})
    with undrained(suite), a_checkout(suite) as folder:
        # The guide's ports lead to where this suite listens.
        ports = "".join(
            f" -e s/127.0.0.1:{port}$/{suite.endpoints[service]}/"
            for port, service in PORTS.items()
        )
        stand_in = folder / "grpcurl"
        stand_in.write_text(
            "#!/bin/bash\nwords=()\nfor word; do\n"
            f'  words+=("$(sed{ports} <<<"$word")")\ndone\n'
            f'"{program}" "${{words[@]}}" || {{ echo "refused: ${{words[*]}}" >&2; exit 1; }}\n'
        )
        stand_in.chmod(0o700)
        done = subprocess.run(
            ["bash", "-ec", "\n".join(blocks(GUIDE))],
            cwd=folder,
            env={
                "PATH": f"{folder}:{os.environ['PATH']}",
                "QFLOW_HOME": str(suite.home.root),
            },
            capture_output=True,
            text=True,
            check=False,
        )
    assert 0 == done.returncode, done.stdout[-4000:] + done.stderr
    assert "refused" not in done.stderr
    assert "Hello, Zoë" in done.stdout
    assert '"status": "EXECUTION_STATUS_CANCELLED"' in done.stdout
