"""Homes whose database is made already: what a suite does first of all takes half of its start."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from services.standalone.home import Home
from services.standalone.postgres import Binaries, Postgres

_ROOT = Path(__file__).resolve().parents[2]
_KEPT = ("secrets", "postgres")
# A suite that is told these makes its database itself, or has none.
_OTHER_DATABASE = frozenset({"QFLOW_DATABASE_URL", "QFLOW_POSTGRES_BIN"})


def furnish(folder: Path, env: Mapping[str, str]) -> None:
    """Put a migrated database, and the secrets that open it, into the empty home of a suite."""
    if _OTHER_DATABASE.isdisjoint(env):
        for name in _KEPT:
            # With owners and modes: PostgreSQL runs as another user where this one is root.
            subprocess.run(["cp", "-a", _furnished() / name, folder], check=True)


@cache
def _furnished() -> Path:
    """Make the one that is copied, once in a process, as a suite would at its first start."""
    root = Path(tempfile.mkdtemp(prefix="qfh-", dir="/tmp"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    home = Home(root)
    with home.locked():
        server = Postgres(
            root / "postgres",
            binaries=Binaries.find(os.environ),
            sockets=home.sockets(),
            password=home.secret("postgres.password"),
            log=home.log / "postgres.log",
            settings={"fsync": "off"},  # a suite sets its own as it starts
        )
        server.start()
        try:
            done = subprocess.run(
                [sys.executable, "-m", "services.standalone.prepare"],
                input=json.dumps({"database_url": server.url(), "home": str(root), "create": True}),
                stdout=subprocess.PIPE,
                text=True,
                check=False,
                cwd=_ROOT,
            )
        finally:
            server.stop()
    assert done.returncode == 0, done.stdout
    return root
