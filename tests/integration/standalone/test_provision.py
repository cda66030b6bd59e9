"""What a deployment's services are given when they are started one by one."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from cryptography import x509

from services.kit import env as settings
from services.kit.at_rest import data_at_rest
from services.kit.key_files import DATA
from services.kit.root_keys import LocalKeys
from services.standalone.home import Home
from services.standalone.process import StandaloneError
from services.standalone.provision import provision
from tests.support.database import Database

_LOGINS = {
    "registry": {"REGISTRY", "REGISTRY_AUTH", "REGISTRY_ENGINE"},
    "orchestrator": {"ORCHESTRATOR", "ORCHESTRATOR_ENGINE"},
    "runner": {"RUNNER", "RUNNER_ENGINE"},
    "telemetry": {"TELEMETRY", "TELEMETRY_MAINT", "TELEMETRY_DOCTOR", "BACKUP"},
}


@pytest.fixture
def home(database: Database, tmp_path: Path) -> Home:
    """A home with the passwords that the server's logins have."""
    root = tmp_path / "home"
    (root / "secrets").mkdir(parents=True, mode=0o700)
    shutil.copy(database.home / "secrets" / "logins.json", root / "secrets")
    return Home(root)


def files_of(folder: Path) -> dict[str, str]:
    return {str(each.relative_to(folder)): each.read_text() for each in folder.rglob("*.*")} | {
        str(each.relative_to(folder)): each.read_text() for each in folder.rglob("QFLOW_*")
    }


def test_each_service_finds_its_own_secrets_and_nobody_elses(
    database: Database, home: Home, tmp_path: Path
) -> None:
    """Provisioned twice, as every `up` does: nothing that is in use changes."""
    folder = tmp_path / "out"
    env = {"QFLOW_DATABASE_URL": database.url(), "QFLOW_TLS_HOSTS": "qflow.example.com, 192.0.2.7"}

    said = provision(home, folder, env, hosts=["qflow.example.org"], days=90)

    assert "new certificates for registry, orchestrator, runner, telemetry" in said
    for service, logins in _LOGINS.items():
        read = settings.with_secrets({"QFLOW_SECRETS_FOLDER": str(folder / service)})
        urls = {f"QFLOW_{login}_DATABASE_URL" for login in logins}
        assert urls | {"QFLOW_SERVICE_TOKEN", "QFLOW_SECRETS_FOLDER"} == {*read}
        for url in urls:
            with psycopg.connect(read[url]) as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)
        certificate = x509.load_pem_x509_certificate(
            (folder / service / "service.crt").read_bytes()
        )
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert {"qflow.example.org", "qflow.example.com"} <= {
            *names.get_values_for_type(x509.DNSName)
        }
        modes = {stat.S_IMODE(each.stat().st_mode) for each in (folder / service).iterdir()}
        assert {0o600} == modes
        assert 0o700 == stat.S_IMODE((folder / service).stat().st_mode)
    assert (folder / "orchestrator" / "webhook.key").is_file()
    keys = {each.relative_to(folder).as_posix() for each in folder.rglob("*s.key")}
    assert {"runner/secrets.key"} == keys
    runner = {"QFLOW_SECRETS_FOLDER": str(folder / "runner")}
    assert LocalKeys.from_env(runner) == LocalKeys.from_env(
        {"QFLOW_SECRETS_KEY_FILE": str(home.secrets / "secrets.key")}
    )
    assert LocalKeys.from_env(runner, DATA) is None
    before = files_of(folder) | {"owner": (home.secrets / "owner.token").read_text()}

    said = provision(home, folder, env, hosts=["qflow.example.org"], days=90)

    assert "the certificates hold" in said
    assert before == files_of(folder) | {"owner": (home.secrets / "owner.token").read_text()}


def test_those_who_seal_data_find_its_root_keys_once_it_is_to_be_sealed(
    database: Database, home: Home, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    env = {"QFLOW_DATABASE_URL": database.url(), "QFLOW_ENCRYPT_DATA": "1"}
    provision(home, folder, env, hosts=[], days=90)
    provision(home, folder, env | {"QFLOW_ENCRYPT_DATA": "0"}, hosts=[], days=90)
    found = {}
    for service in _LOGINS:
        laid = {"QFLOW_SECRETS_FOLDER": str(folder / service), "QFLOW_ENCRYPT_DATA": "1"}
        if service in {"runner", "orchestrator"}:
            assert data_at_rest(laid).seal is not None
            found[service] = LocalKeys.from_env(laid, DATA)
        else:
            with pytest.raises(settings.EnvError, match="QFLOW_DATA_KEY_FILE"):
                data_at_rest(laid)
    assert found["runner"] == found["orchestrator"]


def test_a_migration_of_the_schema_alone_needs_no_home_and_locks_nobody_out(
    database: Database,
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "migrations", "upgrade", "--schema-only"],
        env={"PATH": "/usr/bin:/bin", "QFLOW_DATABASE_URL": database.url()},
        cwd=Path(__file__).resolve().parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    with database.connect("qflow_registry") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_without_the_owners_address_it_says_which_setting_is_missing(tmp_path: Path) -> None:
    with pytest.raises(StandaloneError, match="QFLOW_DATABASE_URL is not set"):
        provision(Home(tmp_path / "home"), tmp_path / "out", {}, hosts=[], days=90)


def test_a_server_that_is_away_is_told_in_one_line(tmp_path: Path) -> None:
    env = {"QFLOW_DATABASE_URL": f"postgresql://nobody@/none?host={tmp_path}"}
    with pytest.raises(StandaloneError, match=r"^QFLOW_DATABASE_URL: .*[Cc]onnection"):
        provision(Home(tmp_path / "home"), tmp_path / "out", env, hosts=[], days=90)
