"""All commands, and their exit codes.

Exit codes: 0 success · 1 a run failed, was cancelled, or the answer is no · 2 wrong usage ·
3 the call was refused · 4 no Qflow was found or reached · 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from typing import Final

import typer

from qflow.cli import (
    again,
    aliases,
    backups,
    batches,
    contexts,
    events,
    files,
    limits,
    looking,
    quotas,
    runs,
    schedules,
    stored,
    suite,
    triggers,
    trying,
    waiting,
)
from qflow.cli.commands import in_shell
from qflow.exceptions import (
    AuthoringError,
    ConfigurationError,
    ExecutionFailedError,
    LocalFileError,
    QflowError,
)

FAILED: Final = 1
WRONG: Final = 2
REFUSED: Final = 3
UNREACHED: Final = 4
INTERRUPTED: Final = 130

app = typer.Typer(
    name="qflow",
    help="Typed, durable workflows of plain Python functions.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(contexts.app, name="context")
stored.nodes.command("run")(trying.run_node)
app.add_typer(stored.nodes, name="node")
app.add_typer(stored.workflows, name="workflow")
app.add_typer(aliases.app, name="alias")
app.add_typer(schedules.app, name="schedule")
app.add_typer(triggers.app, name="trigger")
app.add_typer(events.app, name="events")
app.add_typer(limits.app, name="limit")
app.add_typer(batches.app, name="batch")
app.add_typer(files.app, name="files")
app.add_typer(backups.app, name="backup")
app.add_typer(quotas.app, name="quota")
for command, does in (
    ("up", suite.up),
    ("doctor", suite.doctor),
    ("login", contexts.login),
    ("whoami", contexts.whoami),
    ("run", runs.run),
    ("ls", runs.list_),
    ("show", runs.show),
    ("watch", runs.watch),
    ("logs", runs.logs),
    ("explain", runs.explain),
    ("cancel", runs.cancel),
    ("pause", runs.pause),
    ("resume", runs.resume),
    ("skip", runs.skip),
    ("retry", again.retry),
    ("rerun", again.rerun),
    ("fork", again.fork),
    ("waits", waiting.waits),
    ("signal", runs.signal),
    ("approve", runs.approve),
    ("graph", stored.graph),
    ("plan", looking.plan),
    ("diff", looking.diff),
):
    # The value of a signal may look like an option: -5.
    app.command(command, context_settings={"ignore_unknown_options": command == "signal"})(does)


def main(arguments: list[str] | None = None) -> int:
    """Execute a command; errors are messages that say what to do, never tracebacks."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # errors are reported by this program
    try:
        ended = app(args=arguments, standalone_mode=False)
    except typer.Exit as done:
        return done.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"qflow: {where}{error.strerror or error}", file=sys.stderr)  # noqa: T201
        return WRONG
    except QflowError as error:
        print(f"qflow: {_said(error)}", file=sys.stderr)  # noqa: T201  # its purpose
        return _code(error)
    except Exception as error:
        show = getattr(error, "show", None)  # usage errors print themselves
        if show is None:
            raise
        show()
        return WRONG
    return ended if isinstance(ended, int) else 0


def _said(error: QflowError) -> str:
    """Return the message of an error, with a hint what to type next."""
    if isinstance(error, ExecutionFailedError):
        return str(error)  # the message of the node
    said = in_shell(str(error))
    if getattr(error, "reason", "") == "TOKEN_REFUSED":
        said += ". The token is wrong, or no longer holds: sign in again with `qflow login ADDRESS`"
    return said


def _code(error: QflowError) -> int:
    from qflow.values import ValueTypeError

    match error:
        case ConfigurationError():
            return UNREACHED
        case AuthoringError() | LocalFileError() | ValueTypeError():
            return WRONG
        case ExecutionFailedError():
            return FAILED
    from qflow.errors import UnavailableError

    return UNREACHED if isinstance(error, UnavailableError) else REFUSED
