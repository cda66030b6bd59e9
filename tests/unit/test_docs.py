"""What the pages show can be typed: programs run, commands are those there are.

The guides for Python and for grpcurl are run against a suite: tests/acceptance.
"""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from qflow.cli.app import app
from typer.main import get_command

from services.standalone.cli import _parser as suite_parser

_ROOT: Final = Path(__file__).resolve().parents[2]
_PAGES: Final = sorted(
    [*_ROOT.glob("*.md"), *_ROOT.glob("docs/**/*.md"), *_ROOT.glob("deploy/*.md")]
)
# Programs that are whole: they run here, and what they print is known.
_PROGRAMS: Final = {
    "docs/start.md": "11.2\n",
    "docs/coming-from/airflow.md": "2026-01-31: 11.20\n",
    "docs/coming-from/temporal.md": "2026-01-31: 11.20\n",
    "docs/coming-from/prefect.md": "2026-01-31: 11.20\n",
    "docs/coming-from/windmill.md": "2026-01-31: 11.20\n",
    "docs/coming-from/hatchet.md": "2026-01-31: 11.20\n",
    "docs/coming-from/dbos.md": "2026-01-31: 11.20\n",
    "docs/coming-from/dagster.md": "2026-01-31: 11.20\n",
    "docs/coming-from/flyte.md": "11.2\n",
}


def blocks(page: Path, *languages: str) -> list[str]:
    wanted = "|".join(languages)
    text = page.read_text("utf-8")
    return re.findall(rf"^```(?:{wanted})\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands() -> Iterator[tuple[str, str]]:
    """Give every command line in a block of shell, with the page it stands on."""
    for page in _PAGES:
        for block in blocks(page, "sh", "text"):
            for line in re.sub(r"\\\n\s*", "", block).splitlines():
                yield str(page.relative_to(_ROOT)), line


def starting(program: str) -> list[tuple[str, list[str]]]:
    """Give the arguments of each command that calls a program."""
    found = []
    for page, line in commands():
        for part in re.split(r"(?:^|[;|&]\s+|\bdo )", line):
            told = re.match(rf"\s*(?:[A-Z_]+=\S* )*(?:\S*/)?{re.escape(program)} (.*)", part)
            if told:
                words = shlex.split(told[1].partition(" > ")[0], comments=True)
                found.append((page, words))
    return found


def is_read(arguments: list[str]) -> bool:
    """Return whether `qflow` accepts a command line, which is parsed and not executed."""
    command: Any = get_command(app)
    rest = arguments
    context = None
    try:
        while True:
            context = command.make_context(command.name, list(rest), parent=context)
            rest = [*getattr(context, "_protected_args", ()), *context.args]
            if not rest or not hasattr(command, "resolve_command"):
                return True
            _, command, rest = command.resolve_command(context, rest)
    except Exception as error:  # noqa: BLE001  # typer has a click of its own, which is private
        return str(error).endswith("does not exist.")  # a file of the example


@pytest.mark.parametrize("page", _PROGRAMS)
def test_a_program_that_is_whole_runs_and_prints_what_it_should(
    page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "program.py"
    file.write_text("\n".join(blocks(_ROOT / page, "python")), "utf-8")
    runpy.run_path(str(file))
    assert _PROGRAMS[page] == capsys.readouterr().out


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_every_block_is_text_of_its_language(page: Path) -> None:
    for block in blocks(page, "python", "py"):
        ast.parse(block)
    for block in blocks(page, "yaml"):
        yaml.safe_load(block)
    for block in blocks(page, "sh"):
        done = subprocess.run(
            ["sh", "-n"], input=block, capture_output=True, text=True, check=False
        )
        assert (0, "") == (done.returncode, done.stderr), block


def test_every_command_of_qflow_has_the_arguments_that_pages_give_it() -> None:
    found = starting("qflow")
    assert len(found) > 25
    unread = [f"{page}: {shlex.join(words)}" for page, words in found if not is_read(words)]
    assert [] == unread


def test_every_command_of_the_suite_has_the_arguments_that_pages_give_it() -> None:
    found = starting("python -m services.standalone")
    assert len(found) > 10
    for page, arguments in found:
        try:
            suite_parser().parse_args(arguments)
        except SystemExit:
            pytest.fail(f"{page}: services.standalone {shlex.join(arguments)}")


def test_a_command_that_there_is_not_is_found() -> None:
    assert not is_read(["run", "order", "--wath"])
    assert not is_read(["rnu", "order"])


def test_every_target_of_make_that_a_page_names_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (_ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {words[0] for _, words in starting("make") if words}
    assert {"demo", "run"} <= named
    assert named <= targets
