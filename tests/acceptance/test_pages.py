"""What pages show is executed as it stands there: every block of shell and of Python.

On one suite of its own, in a folder that looks like the checkout. What cannot be executed here is
named with who executes it, or with the reason why nobody does.
"""

from __future__ import annotations

import ast
import asyncio
import os
import re
import shlex
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import qflow
from qflow.cli.app import main
from qflow.client.blocking import connect_blocking
from qflow.telemetry.v1 import backup_service_pb2, backup_service_pb2_grpc

from tests.acceptance.test_grpcurl import a_checkout, grpcurl
from tests.support.suite import Suite
from tests.support.suite_fixtures import discard

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT: Final = Path(__file__).resolve().parents[2]
PAGES: Final = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/*.md")])
PASSWORD: Final = "correct horse"  # of users that the pages make

_TRIPS = "tests/clients/test_trips.py::test_a_trip_on_plain_text"
_RECOVERY = "tests/faults/test_recovery.py"
# Blocks that other tests execute, by page and number of the block of its language.
ELSEWHERE: Final[Mapping[tuple[str, str], str]] = {
    ("README.md", "sh 0"): (
        "tests/docker/test_fresh_machine.py::test_the_demo_runs_on_a_fresh_machine"
    ),
    ("README.md", "sh 2"): (
        "tests/acceptance/test_grpcurl.py::test_the_readme_shows_what_the_guide_shows"
    ),
    **{
        ("deploy/grpcurl.md", f"sh {number}"): (
            "tests/acceptance/test_grpcurl.py::test_the_guide_runs_from_its_first_command_to_its_last"
        )
        for number in range(17)
    },
    ("docs/backup.md", "sh 1"): (
        "tests/integration/standalone/test_backups.py"
        "::test_a_backup_is_restored_and_what_must_hold_holds_in_the_copy"
    ),
    ("docs/backup.md", "sh 2"): (
        f"{_RECOVERY}::test_a_synchronous_replica_that_is_promoted_has_every_commit"
    ),
    ("docs/backup.md", "sh 3"): (
        f"{_RECOVERY}::test_a_home_of_the_version_before_is_upgraded_with_a_run_under_way"
    ),
    ("docs/deployment.md", "sh 0"): (
        "tests/docker/test_compose.py"
        "::test_a_deployment_serves_survives_and_keeps_what_it_was_given"
    ),
    ("docs/http.md", "sh 0"): (
        "tests/clients/test_gateway.py::test_a_run_goes_from_its_source_to_its_result"
    ),
    ("docs/http.md", "sh 1"): (
        "tests/clients/test_gateway.py::test_a_run_goes_from_its_source_to_its_result"
    ),
    **{
        (f"docs/{language}.md", "sh 0"): _TRIPS
        for language in ("cpp", "go", "java", "rust", "typescript")
    },
    **{
        ("docs/python.md", f"python {number}"): (
            "tests/acceptance/test_guide.py::test_the_guide_for_python_runs"
        )
        for number in range(4)
    },
    **{
        (f"docs/{page}.md", "python 0"): (
            "tests/unit/test_docs.py::test_a_program_that_is_whole_runs_and_prints_what_it_should"
        )
        for page in (
            *("start", "coming-from/airflow", "coming-from/prefect"),
            *("coming-from/temporal", "coming-from/windmill"),
            *("coming-from/hatchet", "coming-from/dbos"),
            *("coming-from/dagster", "coming-from/flyte"),
        )
    },
    ("docs/several-orchestrators.md", "sh 0"): (
        "tests/faults/test_members.py::test_runs_of_an_orchestrator_that_is_killed_go_on_at_another"
    ),
    ("docs/start.md", "text 0"): (
        "tests/docker/test_fresh_machine.py::test_the_demo_runs_on_a_fresh_machine"
    ),
    ("docs/traces.md", "sh 0"): (
        "tests/acceptance/test_traces.py::test_a_run_is_one_trace_over_all_services"
    ),
    ("docs/transport.md", "sh 0"): (
        "tests/acceptance/test_tls.py"
        "::test_a_suite_speaks_tls_and_takes_renewed_certificates_while_it_runs"
    ),
}
# Blocks that nobody executes, and why.
NOBODY: Final[Mapping[tuple[str, str], str]] = {
    ("CONTRIBUTING.md", "sh 0"): "these are the tests themselves, and what runs them",
    ("docs/deployment.md", "sh 1"): "makes users and units of the machine it is typed on",
    ("docs/deployment.md", "sh 2"): "needs a Kubernetes cluster; test_helm renders the chart",
    ("docs/sandboxes.md", "sh 0"): "pulls an image; the variables are read in tests/docker",
    **{
        (f"docs/coming-from/{product}.md", "py 0"): "the other product's own code"
        for product in ("airflow", "prefect", "temporal", "hatchet", "dbos", "dagster", "flyte")
    },
}
# Lines within blocks that are executed, and why they are left out.
LEFT_OUT: Final[Mapping[str, str]] = {
    r"^([A-Z_]+=\S+ )?make run\b": "the suite runs already: it is what the others call",
    r"^qflow up$": "the suite runs already",
    r"^qflow login qflow\.example\.org": "another machine; tests/acceptance/test_tls.py signs in",
    r"^qflow retry RUN --quarantined$": "of a map; tests/acceptance/test_cli_services.py makes one",
}
# What a fragment of Python stands in.
BEFORE: Final[Mapping[tuple[str, str], str]] = {
    ("docs/heartbeats.md", "python 0"): "def fetch(page): seen.append(page)\nseen = []",
    ("docs/nodes.md", "python 0"): "from typing import TypedDict",
}
AFTER: Final[Mapping[tuple[str, str], str]] = {
    ("README.md", "python 0"): "assert 2.0 == median([3.0, 1.0, 2.0])",
    ("docs/heartbeats.md", "python 0"): "assert (2, ['a', 'b']) == (crawl(['a', 'b']), seen)",
}


@dataclass(frozen=True)
class Block:
    """A block of a page: its language, which it is of that language, and its text."""

    page: str
    name: str
    text: str

    @property
    def key(self) -> tuple[str, str]:
        return self.page, self.name

    def lines(self) -> list[str]:
        """Give its commands, each on one line, without those that are left out."""
        joined = re.sub(r"\\\n\s*", "", self.text).splitlines()
        return [line for line in joined if not any(re.search(each, line) for each in LEFT_OUT)]


def blocks() -> Iterator[Block]:
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        counts: dict[str, int] = {}
        found = re.findall(
            r"^```(sh|python|py|text)\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL
        )
        for language, text in found:
            number = counts.get(language, 0)
            counts[language] = number + 1
            if language != "text" or re.match(r"(make|qflow) ", text):
                yield Block(name, f"{language} {number}", text)


BLOCKS: Final = {each.key: each for each in blocks()}
EXECUTED: Final = [each for key, each in BLOCKS.items() if key not in {**ELSEWHERE, **NOBODY}]
SHELL: Final = [each for each in EXECUTED if not each.name.startswith("py")]
PYTHON: Final = [each for each in EXECUTED if each.name.startswith("py")]

CLI: Final = ("docs/cli.md", "sh 0")
PLACEHOLDER: Final = '"execution_id": "…"'


@dataclass
class Place:
    """The suite, and the folder in which commands are typed."""

    suite: Suite
    folder: Path
    env: dict[str, str] = field(repr=False)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    home = Path(tempfile.mkdtemp(prefix="qfp-", dir="/tmp"))
    backups = Path(tempfile.mkdtemp(prefix="qfp-", dir="/tmp"))
    suite = Suite(home, {"QFLOW_BACKUP_FOLDER": str(backups)})
    try:
        suite.start()
        with a_checkout(suite) as folder:
            for each in ("Makefile", "examples", "services", "migrations", "protos"):
                (folder / each).symlink_to(ROOT / each)
            yield Place(
                suite,
                folder,
                {
                    "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
                    "HOME": str(folder),
                    "QFLOW_HOME": str(home),
                    "QFLOW_BACKUP_FOLDER": str(backups),
                },
            )
    finally:
        suite.stop()
        discard(home)
        discard(backups)


def test_what_is_executed_elsewhere_or_by_nobody_is_on_the_pages() -> None:
    assert set() == (ELSEWHERE.keys() | NOBODY.keys()) - BLOCKS.keys()
    assert set() == ELSEWHERE.keys() & NOBODY.keys()
    assert set() == (BEFORE.keys() | AFTER.keys()) - {each.key for each in PYTHON}
    for test in set(ELSEWHERE.values()):
        path, _, name = test.partition("::")
        tree = ast.parse((ROOT / path).read_text("utf-8"))
        there = [each.name for each in tree.body if hasattr(each, "name")]
        assert name in there, test


@pytest.mark.parametrize("block", PYTHON, ids=lambda each: " ".join(each.key))
def test_a_block_of_python_runs(block: Block) -> None:
    program = "\n".join([BEFORE.get(block.key, ""), block.text, AFTER.get(block.key, "")])
    exec(compile(program, block.page, "exec"), {"__name__": "page"})  # what it is for


@pytest.mark.parametrize(
    "block", [each for each in SHELL if each.key != CLI], ids=lambda each: " ".join(each.key)
)
def test_a_block_of_shell_runs(block: Block, place: Place) -> None:
    own = block.page if "coming-from" in block.page else "docs/coming-from/airflow.md"
    for name, page in (("order", "docs/start.md"), ("orders", own)):
        program = BLOCKS[page, "python 0"].text
        (place.folder / f"{name}.py").write_text(program, "utf-8")
    env = {**place.env, "TOKEN": place.suite.owner_token}
    text = "\n".join(block.lines())
    if "SCHEDULE" in text:  # what the line before has made
        text = re.sub(r"^(qflow schedule create .*)$", r"SCHEDULE=$(\1)", text, flags=re.MULTILINE)
        text = re.sub(r"\bSCHEDULE\b(?!=)", '"$SCHEDULE"', text)
    text = text.replace("ada@", f"ada-{uuid.uuid4().hex[:8]}@")  # pages make the same people
    if PLACEHOLDER in text:
        text = text.replace(PLACEHOLDER, f'"execution_id": "{run(place)}"')
    if block.page == "docs/backup.md":
        asyncio.run(first_backup(place.suite))
    with grpcurl(place.suite, place.folder) as asked:
        done = subprocess.run(
            ["sh", "-ec", text],
            cwd=place.folder,
            env=env,
            input=f"{PASSWORD} {uuid.uuid4()}\n",
            capture_output=True,
            text=True,
            check=False,
        )
    assert [] == [(what, said) for what, code, said in asked if code != 0]
    assert 0 == done.returncode, done.stdout + done.stderr


async def first_backup(suite: Suite) -> None:
    """Wait until the backup that a suite makes of itself as it starts is proven and done with."""
    async with asyncio.timeout(120), suite.channel("telemetry") as channel:
        stub: Any = backup_service_pb2_grpc.BackupServiceStub(channel)
        while True:
            asked = backup_service_pb2.GetBackupStatusRequest()
            status = await stub.GetBackupStatus(asked, timeout=60)
            if status.HasField("last_verify_time") and not status.busy_backup_id:
                return
            await asyncio.sleep(1.0)  # each answer takes a process


def test_every_command_of_the_page_of_commands_does_what_it_says(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: starting one for each of forty commands would take a minute."""
    for name, value in place.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GRPC_VERBOSITY", "NONE")
    monkeypatch.chdir(place.folder)
    password = (place.suite.home.secrets / "owner.password").read_text("utf-8").strip()
    monkeypatch.setattr("typer.prompt", lambda *_a, **_k: password)
    Path("report.pdf").write_bytes(b"%PDF-1.7")
    runs = Runs(place)
    with place.suite.sql() as sql:
        query = "SELECT id::text FROM users WHERE email = 'owner@localhost'"
        [(tenant,)] = sql.execute(query).fetchall()
    brought = scheduled = ""
    executed = 0
    for line in BLOCKS[CLI].lines():
        for command in re.split(r";\s+(?=qflow )", line.partition(" #")[0]):
            if any(re.search(each, command.strip()) for each in LEFT_OUT):
                continue
            words = shlex.split(command)[1:]
            verb = " ".join(words[:2]) if words[0] in GROUPS else words[0]
            if verb == "files get":
                Path("report.pdf").unlink()
            arguments = [each.replace("RUN", runs.fit(verb)) for each in words if each != "ID"]
            if verb == "files get":
                arguments.append(brought)
            arguments = [each.replace("FILE.py", "examples/client/orders.py") for each in arguments]
            arguments = [each.replace("NAME", "order") for each in arguments]
            arguments = [each.replace("TENANT", tenant) for each in arguments]
            arguments = [each.replace("SCHEDULE", scheduled) for each in arguments]
            arguments += runs.addresses(arguments)
            code = main(arguments)
            said = capsys.readouterr()
            while "is in progress" in said.err:  # the backup that a suite makes of itself
                code, said = main(arguments), capsys.readouterr()
            # What fails by itself fails again; everything else does what it says.
            assert (1 if verb == "retry" else 0) == code, f"{command}: {said.out}{said.err}"
            brought = said.out.strip() if verb == "files put" else brought
            scheduled = said.out.strip() if verb == "schedule create" else scheduled
            executed += 1
    assert executed > 25
    assert b"%PDF-1.7" == Path("report.pdf").read_bytes()


GROUPS: Final = frozenset(
    {"node", "workflow", "schedule", "files", "backup", "limit", "trigger", "events"}
)


@qflow.node(name="pages: fail")
def fail(word: str) -> str:
    """Fail, whatever it is given."""
    raise ValueError(word)


@qflow.node(name="pages: linger")
def linger(seconds: float) -> float:
    """Take its time."""
    import time

    time.sleep(seconds)
    return seconds


@qflow.workflow(name="pages: failing")
def failing(word: str) -> str:
    """Fail at its only place."""
    return fail(word)


@qflow.workflow(name="pages: lingering")
def lingering(seconds: float) -> float:
    """Go on until it is stopped."""
    return linger(seconds)


@qflow.node(name="pages: ship")
def ship(paid: float, approved: bool) -> float:  # noqa: FBT001  # an input
    """Give what was paid, once somebody has said yes."""
    return paid if approved else 0.0


@qflow.workflow(name="pages: waiting")
def waiting() -> float:
    """Wait for money and for a word."""
    return ship(qflow.signal("paid", float), qflow.approval("boss")["approved"])


@dataclass
class Runs:
    """Runs that fit what a command does to them, each started when it is asked for."""

    place: Place
    held: dict[str, str] = field(default_factory=dict)

    def fit(self, verb: str) -> str:
        """Give the id of a run to which this may be done."""
        match verb:
            case "explain" | "retry":
                return self._once("failed", failing, "x")
            case "cancel":
                return self._once("cancelled", lingering, 60.0)
            case "pause" | "resume":
                return self._once("paused", lingering, 60.0)
            case "skip" | "signal" | "approve" | "waits":
                return self._once("waiting", waiting)
            case "rerun" | "fork":
                return ordered(self.place)
            case _:
                return self._once("over", failing, "x")

    def addresses(self, arguments: list[str]) -> list[str]:
        """Tell a sign-in where the services are: this suite's ports do not follow each other."""
        if arguments[0] != "login":
            return []
        there = self.place.suite.endpoints
        arguments[1] = there["registry"]
        return [f"--{each}={there[each]}" for each in ("orchestrator", "runner", "telemetry")]

    def _once(self, name: str, workflow: Any, *arguments: Any) -> str:
        if name not in self.held:
            with connect_blocking(home=str(self.place.suite.home.root)) as client:
                started = client.start(workflow, *arguments)
                if workflow is failing:
                    started.wait()
                self.held[name] = started.id
        return self.held[name]


def run(place: Place) -> str:
    """Give a run that is over."""
    with connect_blocking(home=str(place.suite.home.root)) as client:
        started = client.start(failing, "x")
        started.wait()
        return started.id


def ordered(place: Place) -> str:
    """Give a run of the example's workflow that is over."""
    from examples.client import orders

    with connect_blocking(home=str(place.suite.home.root)) as client:
        started = client.start(orders.order, ["tea;2;3.50"])
        started.wait()
        return started.id
