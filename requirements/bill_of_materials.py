"""What the suite is made of, as a CycloneDX document: `make sbom`.

Every package of run.lock with its version, the hashes that it may have, its licence, and what
needs what, read from the lock and from what is installed here. Without a moment or a random number
in it: the same lock gives the same bytes.
"""

from __future__ import annotations

import json
import sys
import sysconfig
from pathlib import Path
from typing import Final

from services.runner.domain.environments import packages_in
from services.runner.gateways.bom import bill_of_materials

_LOCK: Final = Path(__file__).with_name("run.lock")


def main() -> str:
    """Give the document."""
    told = json.loads(
        bill_of_materials(
            Path(sysconfig.get_path("purelib")),
            packages_in(_LOCK.read_text("utf-8")),
            key="qflow",
            python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        )
    )
    told["metadata"].pop("timestamp", None)
    return json.dumps(told, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    print(main(), end="")
