"""The suite on this machine, if it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Annotated

import typer

from qflow.cli.common import AsJson
from qflow.exceptions import ConfigurationError


def up(
    home: Annotated[str, typer.Option(help="The home folder; default: QFLOW_HOME or .qflow.")] = "",
) -> int:
    """Run the whole suite on this machine. PostgreSQL, Redis and four services."""
    return _standalone(["up"], home)


def doctor(
    invariants: Annotated[
        list[str] | None,
        typer.Argument(help="Invariants such as I4; default: all.", metavar="[ID]…"),
    ] = None,
    home: Annotated[str, typer.Option(help="The home folder; default: QFLOW_HOME or .qflow.")] = "",
    as_json: AsJson = False,
) -> int:
    """Check the invariants of the suite on this machine."""
    options = ["--json"] if as_json else []
    return _standalone(["doctor", *(invariants or []), *options], home)


def _is_installed() -> bool:
    try:
        return importlib.util.find_spec("services.standalone") is not None
    except ModuleNotFoundError:
        return False


def _standalone(arguments: list[str], home: str) -> int:
    if not _is_installed():
        raise ConfigurationError(
            "the suite is not installed here: this is the client alone. Install qflow-suite, or "
            "`qflow login` to one that runs elsewhere"
        )
    if home:
        os.environ["QFLOW_HOME"] = home
    # By name: the client does not import the suite.
    code: int = importlib.import_module("services.standalone.cli").main(arguments)
    return code
