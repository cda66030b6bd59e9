"""What libraries log goes into the same stream: errors whole, warnings in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
_LOGGED = """
import logging
from services.kit import log
log.configure("tiny")
try:
    raise ConnectionResetError(104, "reset by peer")
except OSError:
    logging.getLogger("asyncpg.pool").warning("retrying", exc_info=True)
    logging.getLogger("asyncio").error("Task exception was never retrieved", exc_info=True)
logging.getLogger("grpc").warning("slow")
"""


def test_a_warning_names_its_error_and_an_error_says_where_it_arose() -> None:
    paths = os.pathsep.join((str(ROOT), str(ROOT / "clients/python")))
    said = subprocess.run(
        [sys.executable, "-c", _LOGGED],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    goes_on, lost, bare = map(json.loads, said.stdout.splitlines())
    assert {"library_logged"} == {line["event"] for line in (goes_on, lost, bare)}
    assert ("asyncpg.pool", "retrying") == (goes_on["logger"], goes_on["text"])
    assert "ConnectionResetError(104, 'reset by peer')" == goes_on["error"]
    assert "exception" not in goes_on
    assert lost["exception"].startswith("Traceback")
    assert "reset by peer" in lost["exception"]
    assert not {"error", "exception"} & set(bare)
