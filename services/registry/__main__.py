"""`python -m services.registry` serves; its subcommands make owners, service tokens and users."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import logging
import os
import sys
from collections.abc import Mapping

import structlog

from services.kit import env as settings
from services.kit.errors import InvalidArgument, QflowError


def main(arguments: list[str], env: Mapping[str, str]) -> int:
    """Run one command; returns the exit code of the process."""
    asked = _parser().parse_args(arguments)
    if asked.command is None:
        from services.registry.app import serve  # late: other commands need no server

        return serve()
    # Only the result is written to stdout, so that scripts can capture it.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )
    try:
        env = settings.with_secrets(env)
        url = settings.required(env, "QFLOW_REGISTRY_AUTH_DATABASE_URL")
        if asked.command == "create-user":
            # Before the event loop starts, in which Ctrl-C would not interrupt the prompt.
            asked.password = asked.password or _password()
        asyncio.run(_run(asked, url, env))
    except (QflowError, settings.EnvError) as error:
        print(error, file=sys.stderr)  # noqa: T201  # a command prints to a terminal
        return 2
    except (KeyboardInterrupt, EOFError):  # at the password prompt
        return 130
    return 0


async def _run(asked: argparse.Namespace, url: str, env: Mapping[str, str]) -> None:
    from services.registry.usecases import bootstrap  # late: serving does not need it

    if asked.command == "create-user":
        user_id = await bootstrap.create_user(
            url, email=asked.email, password=asked.password, role=asked.role
        )
        print(user_id)  # noqa: T201
        return
    home = settings.path(env, "QFLOW_HOME")
    if asked.command == "bootstrap-owner":
        print(await bootstrap.bootstrap_owner(url, home, email=asked.email))  # noqa: T201
        return
    await bootstrap.service_token(url, home, name=asked.name, scopes=asked.scopes)
    print(home / "secrets" / f"{asked.name}.token")  # noqa: T201


def _password() -> str:
    """Prompt for a password at a terminal, or read it from the first line of a pipe."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        raise InvalidArgument("PASSWORDS_DIFFER", "the two passwords are not the same")
    return password


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.registry", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    owner = commands.add_parser(
        "bootstrap-owner", help="make the owner if there is none, and a new token; print its file"
    )
    owner.add_argument("--email", default="owner@localhost")
    token = commands.add_parser("service-token", help="give a service its token; print its file")
    token.add_argument("name")
    token.add_argument("scopes", nargs="+")
    user = commands.add_parser("create-user", help="make a user; print the id")
    user.add_argument("email")
    user.add_argument(
        "--password",
        help="when left out, which keeps it out of sight: asked for, or read from a pipe",
    )
    user.add_argument("--role", default="user", choices=["viewer", "user", "admin"])
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
