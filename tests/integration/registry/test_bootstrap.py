from __future__ import annotations

import asyncio
import io
import stat
import sys
import uuid
from pathlib import Path

import pytest

from services.kit.errors import AlreadyExists, InvalidArgument
from services.kit.ids import token_sha256
from services.registry.__main__ import main
from services.registry.gateways.passwords import Passwords
from services.registry.usecases.bootstrap import bootstrap_owner, create_user, service_token
from tests.support.database import Database


def _url(database: Database) -> str:
    return database.url("qflow_registry_auth")


def _name_of(database: Database, token: str) -> str | None:
    with database.connect("qflow_registry") as db:
        row = db.execute("SELECT name FROM authenticate(%s)", (token_sha256(token),)).fetchone()
    return None if row is None else str(row[0])


async def test_there_is_one_owner_and_each_call_makes_a_new_token(
    database: Database, tmp_path: Path
) -> None:
    first = (await bootstrap_owner(_url(database), tmp_path)).read_text().strip()
    password = (tmp_path / "secrets" / "owner.password").read_text()
    second = (await bootstrap_owner(_url(database), tmp_path)).read_text().strip()

    assert first != second
    assert _name_of(database, second) == "owner@localhost"
    assert _name_of(database, first) is None
    assert (tmp_path / "secrets" / "owner.password").read_text() == password
    for file in (tmp_path / "secrets").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with database.connect() as db:
        owners = db.execute("SELECT role, password_hash FROM users WHERE is_owner").fetchall()
    assert len(owners) == 1
    assert owners[0][0] == "admin"
    assert owners[0][1].startswith("$argon2id$")


async def test_two_bootstraps_at_once_make_one_owner(database: Database, tmp_path: Path) -> None:
    """I26."""
    homes = [tmp_path / "one", tmp_path / "two"]
    paths = await asyncio.gather(*[bootstrap_owner(_url(database), home) for home in homes])
    names = {_name_of(database, path.read_text().strip()) for path in paths}
    assert names == {"owner@localhost"}


async def test_a_services_token_stays_until_its_file_goes(
    database: Database, tmp_path: Path
) -> None:
    first = await service_token(_url(database), tmp_path, name="runner", scopes=["runner"])
    again = await service_token(_url(database), tmp_path, name="runner", scopes=["runner", "x"])
    assert first == again
    assert (tmp_path / "secrets" / "runner.token").read_text().strip() == first
    with database.connect("qflow_registry") as db:
        row = db.execute(
            "SELECT kind, scopes FROM authenticate(%s)", (token_sha256(first),)
        ).fetchone()
    assert row == ("service", ["runner", "x"])

    (tmp_path / "secrets" / "runner.token").unlink()
    third = await service_token(_url(database), tmp_path, name="runner", scopes=["runner"])
    assert third != first
    assert _name_of(database, first) is None


async def test_a_user_is_made_once_per_address(database: Database) -> None:
    url = _url(database)
    await create_user(url, email="Ada@Example.org", password="correct horse")
    with pytest.raises(AlreadyExists):
        await create_user(url, email="ada@example.ORG", password="correct horse")


@pytest.mark.parametrize(
    ("email", "password", "role"),
    [
        ("a@b@c", "correct horse", "user"),
        ("a@b\r\nc", "correct horse", "user"),
        ("a" * 300 + "@example.org", "correct horse", "user"),
        ("a@example.org", "short", "user"),
        ("a@example.org", "x" * 1025, "user"),
        ("a@example.org", "correct\0horse", "user"),
        ("a@example.org", "correct horse", "service"),
    ],
)
async def test_what_is_no_address_password_or_role_is_refused(
    email: str, password: str, role: str
) -> None:
    """B81, B82: before anything is hashed or asked of a database."""
    with pytest.raises(InvalidArgument):
        await create_user("postgresql:///nowhere", email=email, password=password, role=role)


def test_the_commands_print_where_the_secrets_lie(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env = {
        "QFLOW_REGISTRY_AUTH_DATABASE_URL": _url(database),
        "QFLOW_HOME": str(tmp_path),
    }
    assert main(["bootstrap-owner"], env) == 0
    assert main(["service-token", "telemetry", "telemetry"], env) == 0
    assert main(["create-user", "b@example.org", "--password", "correct horse"], env) == 0
    assert main(["create-user", "b@example.org", "--password", "correct horse"], env) == 2
    printed = capsys.readouterr()
    owner, telemetry, user = printed.out.splitlines()
    assert str(tmp_path / "secrets" / "owner.token") == owner
    assert str(tmp_path / "secrets" / "telemetry.token") == telemetry
    assert uuid.UUID(user)
    assert "there is a user" in printed.err


@pytest.mark.usefixtures("full_hashes")
def test_without_a_terminal_a_password_is_read_from_what_is_piped_in(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = {"QFLOW_REGISTRY_AUTH_DATABASE_URL": _url(database)}
    for piped, code in (("correct horse\n", 0), ("", 2)):
        monkeypatch.setattr(sys, "stdin", io.StringIO(piped))
        assert main(["create-user", "c@example.org"], env) == code
    with database.connect() as db:
        [(digest,)] = db.execute(
            "SELECT password_hash FROM users WHERE email = 'c@example.org'"
        ).fetchall()
    assert digest.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert asyncio.run(Passwords().verify(digest, "correct horse"))
