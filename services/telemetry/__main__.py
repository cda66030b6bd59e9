"""`python -m services.telemetry` serves; its subcommand examines the database."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Mapping
from typing import Final

import structlog

from services.kit import env as settings
from services.kit.errors import QflowError
from services.kit.run import run_service

_UNHEALTHY: Final = 1
_REFUSED: Final = 2


def main(arguments: list[str], env: Mapping[str, str]) -> int:
    """Run one command; returns the process's exit code, 1 if an invariant does not hold."""
    asked = _parser().parse_args(arguments)
    if asked.command is None:
        from services.telemetry.app import build  # imported late: the doctor needs no server

        return run_service("telemetry", build)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )
    try:
        env = settings.with_secrets(env)
        url = settings.required(env, "QFLOW_TELEMETRY_DOCTOR_DATABASE_URL")
        return asyncio.run(_examine(url, asked))
    except (QflowError, settings.EnvError) as error:
        print(error, file=sys.stderr)  # noqa: T201  # a command prints to a terminal
        return _REFUSED
    except KeyboardInterrupt:
        return 130


async def _examine(url: str, asked: argparse.Namespace) -> int:
    from services.kit.pg import open_pool  # imported late: serving opens its own
    from services.telemetry.domain.invariant import Verdict
    from services.telemetry.domain.report import as_json, told
    from services.telemetry.usecases.doctor import Doctor

    async with await open_pool(
        url,
        application_name="qflow-doctor",
        setting="QFLOW_TELEMETRY_DOCTOR_DATABASE_URL",
        size_max=1,
        statement_timeout_s=asked.timeout,
    ) as pool:
        found = await Doctor(pool).examine(
            asked.invariants, rows_max=asked.rows, settle_s=asked.settle
        )
    print(as_json(found) if asked.json else told(found))  # noqa: T201
    return 0 if all(each.verdict is Verdict.HOLDS for each in found) else _UNHEALTHY


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.telemetry", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    doctor = commands.add_parser("doctor", help="ask of every invariant whether it holds")
    doctor.add_argument("invariants", nargs="*", help="ids or names (I4); all where none is given")
    doctor.add_argument("--rows", type=int, default=20, help="how many breaches to show of each")
    doctor.add_argument("--json", action="store_true", help="print one JSON document")
    doctor.add_argument(
        "--settle", type=float, default=5.0, help="seconds before a second look at what may pass"
    )
    doctor.add_argument(
        "--timeout", type=float, default=60.0, help="seconds that one question may take"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
