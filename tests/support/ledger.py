"""A chain of nodes that writes what it does to a folder outside every database.

The folder is bind-mounted into the sandboxes of a test's runner (QFLOW_RUNNER_TEST_BIND), which
only tests do. Each attempt of a node adds a line as it begins; a gate holds a node until the test
opens it, so that a fault strikes while exactly that node runs.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

from qflow.registry.v1 import workflow_pb2

from services.standalone.process import wait_until
from tests.support.client import Client, Step

_CODE = '''
import os
import time


def step(run: str, total: int, name: str, folder: str, gated: bool) -> int:
    """Say that an attempt begins, wait at the gate, add one."""
    line = f"{run} {name} {os.urandom(4).hex()}\\n"
    descriptor = os.open(f"{folder}/ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(descriptor, line.encode())
    os.close(descriptor)
    while gated and not os.path.exists(f"{folder}/gate-{run}-{name}"):
        time.sleep(0.01)
    return total + 1
'''

_INSIDE = "/ledger"  # where a sandbox sees it

NODES = ("first", "held", "after", "last")


class Ledger:
    """The folder, and the workflow of four nodes whose second one waits at its gate."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)
        lines = folder / "ledger"
        lines.touch()
        lines.chmod(0o666)  # under root each sandbox is another user

    @property
    def env(self) -> dict[str, str]:
        """What a suite needs so that its sandboxes see the folder."""
        return {"QFLOW_TESTING": "1", "QFLOW_RUNNER_TEST_BIND": str(self.folder)}

    async def workflow(self, client: Client) -> workflow_pb2.Workflow:
        """Create the chain first → held → after → last."""
        node = await client.create_node("step", _CODE)
        steps = [
            Step(
                name,
                node,
                {"name": name, "folder": _INSIDE, "gated": name == "held"},
            )
            for name in NODES
        ]
        edges = [f".run > {name}.run" for name in NODES]
        edges += [".start > first.total"]
        edges += [f"{source}.result > {target}.total" for source, target in pairwise(NODES)]
        return await client.create_workflow(
            "chain",
            steps,
            edges,
            inputs={"run": "str", "start": "int"},
            outputs=["total = last.result"],
        )

    def open_gate(self, run: str, name: str = "held") -> None:
        """Let a node of a run go on, in this attempt and all later ones."""
        (self.folder / f"gate-{run}-{name}").touch()

    def begun(self, run: str) -> Counter[str]:
        """Count the attempts that each node of a run has begun."""
        try:
            lines = (self.folder / "ledger").read_text("utf-8").splitlines()
        except FileNotFoundError:
            return Counter()
        return Counter(line.split()[1] for line in lines if line.split()[0] == run)

    def wait_begun(self, run: str, name: str = "held", *, times: int = 1) -> None:
        """Wait until a node of a run has begun so many attempts."""
        assert wait_until(lambda: self.begun(run)[name] >= times, timeout_s=120.0), (
            f"{name} of {run} did not begin {times} times: {self.begun(run)}"
        )
