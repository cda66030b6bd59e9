"""How the test processes of one run share the tests: file by file, the whole suite in one of them.

By the text of the file, not by pytest-xdist's mark: xdist 3.8 writes a mark's group into a node's
name, which pytest 9.2 no longer takes up, and tells nobody.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

SUITE = "suite"
IMAGES = "images"
_ROOT = Path(__file__).resolve().parents[2]
_USES_IT = re.compile(
    r"^from tests\.support\.(client|cluster|suite|suite_fixtures) import", re.MULTILINE
)


@cache
def unit_of(file: str) -> str:
    """Name what a file of tests runs together with, in one process and in its order."""
    text = (_ROOT / file).read_text("utf-8")
    # Two cores carry one suite of all services, not two; and whoever uses one says its type.
    if _USES_IT.search(text):
        return SUITE
    # Images of the services have one name each, and are built once.
    return IMAGES if "reaching_the_index(" in text else file


class ByFile(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
    """Gives out files; those of the suite first, for they take longest and mostly wait."""

    def __init__(self, config: pytest.Config, log: Producer | None) -> None:
        super().__init__(config, log)
        # As collected: unit tests, of which no file takes long, come last and even out the ends.
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid.split("::", 1)[0])
