"""Make `services/registry/domain/import_names.tsv`: which distribution brings a module.

`python requirements/import_names.py DATABASE RANKS`. DATABASE is the SQLite file in a wheel of
`pigar` (BSD licence), whose authors read the top-level names of every distribution of the index;
RANKS lists distributions, one a line, the most downloaded first. Only names that differ are kept,
and only of distributions that very many people install: a guess must not fetch a stranger's code.
"""

from __future__ import annotations

import re
import sqlite3
import sys
from collections import defaultdict
from pathlib import Path

from packaging.utils import canonicalize_name

TARGET = Path(__file__).parent.parent / "services/registry/domain/import_names.tsv"
RANK_MAX = 4_000
# A name that this many well-known distributions bring is a namespace, or an accident.
BRINGERS_MAX = 6
ACCIDENTS = re.compile(
    r"_.*|.*_tests?|.*_version|native_.*|jaraco|fluent|zope|(demo|swagger|typing|wheelhouse|node_module|test|doc|example|sample|script|bench|tool|util|src|lib|bin|build|dist|config|setup|common"
    r"|core|data|model|server|client|main|app|cli|api|resource|requirement|license|plugin|stub)s?\w*",
    re.IGNORECASE,
)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def main(database: str, ranks: str) -> None:
    """Write the file anew."""
    lines = Path(ranks).read_text(encoding="utf-8").split()
    rank = {canonicalize_name(name): at for at, name in reversed(list(enumerate(lines)))}
    bringers: dict[str, set[str]] = defaultdict(set)
    rows = sqlite3.connect(database).execute(
        "SELECT d.name, m.name FROM distributions d"
        " JOIN top_level_module_names m ON m.distribution_id = d.id"
    )
    for distribution, module in rows:
        name = canonicalize_name(distribution)
        if rank.get(name, RANK_MAX) < RANK_MAX and _NAME.fullmatch(module):
            bringers[module].add(name)
    found = []
    for module, names in bringers.items():
        best = min(names, key=rank.__getitem__)
        known = module in sys.stdlib_module_names or ACCIDENTS.fullmatch(module)
        if not known and len(names) <= BRINGERS_MAX and best != canonicalize_name(module):
            found.append(f"{module}\t{best}\n")
    TARGET.write_text("".join(sorted(found)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:3])
