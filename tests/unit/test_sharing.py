"""How the test processes of one run share the tests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.support.sharing import IMAGES, SUITE, ByFile, unit_of

_QUICK = [f"tests/unit/kit/test_cel.py::test_{number}" for number in range(5)]
_OTHER = [f"tests/unit/kit/test_filter.py::test_{number}[a::b]" for number in range(5)]
_SUITE = ["tests/faults/test_kill.py::test_a", "tests/acceptance/test_api.py::test_b"]


class Node:
    """Stands for a test process: remembers what it was given."""

    def __init__(self) -> None:
        self.gateway = SimpleNamespace(id=id(self))
        self.shutting_down = False
        self.given: list[int] = []

    def send_runtest_some(self, indexes: list[int]) -> None:
        self.given += indexes

    def shutdown(self) -> None:
        self.shutting_down = True


def test_files_that_use_the_whole_suite_are_one_unit_and_others_are_their_own() -> None:
    assert {SUITE} == {unit_of(each.split("::")[0]) for each in _SUITE}
    assert "tests/unit/kit/test_cel.py" == unit_of("tests/unit/kit/test_cel.py")


def test_files_that_build_the_images_of_the_services_are_one_unit() -> None:
    assert {IMAGES} == {
        unit_of(f"tests/docker/{each}.py")
        for each in ("test_compose", "test_services_in_containers")
    }


def test_a_file_runs_in_one_process_and_the_suite_in_the_one_that_begins() -> None:
    config: Any = SimpleNamespace(
        option=SimpleNamespace(loadscopereorder=True),
        getvalue=lambda name: ["2*popen"] if name == "tx" else None,
    )
    nodes = [Node(), Node()]
    shared = ByFile(config, None)
    collected = [_SUITE[1], *_QUICK, _SUITE[0], *_OTHER]
    for node in nodes:
        shared.add_node(node)
    for node in nodes:
        shared.add_node_collection(node, collected)
    shared.schedule()
    given = [{collected[index] for index in node.given} for node in nodes]
    assert set(_SUITE) <= given[0]
    assert set(_QUICK) == given[1]
    assert set(_OTHER) == given[0] - set(_SUITE)
