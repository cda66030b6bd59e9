from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from services.kit.root_keys import LocalKeys
from services.standalone.home import Home, write_private
from services.standalone.process import ProcessMark, StandaloneError


def test_a_second_suite_on_the_same_folder_is_refused_with_who_holds_it(tmp_path: Path) -> None:
    first, second = Home(tmp_path / "home"), Home(tmp_path / "home")
    with first.locked():
        assert second.holder() == os.getpid()
        with pytest.raises(StandaloneError) as refused, second.locked():
            pass
    assert f"process {os.getpid()}" in str(refused.value)
    assert "QFLOW_HOME" in str(refused.value)
    with second.locked():
        pass
    assert second.holder() is None


def test_a_secret_is_random_stays_the_same_and_is_ours_alone(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.make()
    secret = home.secret("postgres.password")
    assert len(secret) == 48
    assert home.secret("postgres.password") == secret
    assert stat.S_IMODE((home.secrets / "postgres.password").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.secrets.stat().st_mode) == 0o700


def test_the_root_key_of_secrets_stays_the_same_opens_them_and_is_ours_alone(
    tmp_path: Path,
) -> None:
    home = Home(tmp_path / "home")
    home.make()
    path = home.secrets_key()
    before = path.read_bytes()
    found = LocalKeys.from_env({"QFLOW_SECRETS_KEY_FILE": str(path)})
    assert found is not None
    assert "k1" == found.current
    assert home.secrets_key().read_bytes() == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_root_key_of_data_is_made_once_it_is_needed_and_stays(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.make()
    assert home.data_key(make=False) is None
    path = home.data_key(make=True)
    assert path is not None
    before = path.read_bytes()
    assert before != home.secrets_key().read_bytes()
    assert path == home.data_key(make=False) == home.data_key(make=True)
    assert before == path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_deep_home_gets_a_short_private_folder_for_its_sockets(tmp_path: Path) -> None:
    shallow, deep = Home(Path("/tmp/q")), Home(tmp_path / ("d" * 60) / ("e" * 60))
    deep.make()
    folder = deep.sockets()
    try:
        assert shallow.sockets() == Path("/tmp/q/run")
        assert len(str(folder / ".s.PGSQL.5432")) <= 107
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert deep.sockets() == folder
        folder.chmod(0o755)
        other = deep.sockets()
        assert other != folder  # somebody else could enter that one by now
        other.rmdir()
    finally:
        folder.rmdir()


def test_whoever_let_go_of_a_deep_home_leaves_no_folder_for_sockets(tmp_path: Path) -> None:
    home = Home(tmp_path / ("d" * 60) / ("e" * 60))
    with home.locked():
        folder = home.sockets()
        (folder / "attach.sock").touch()
    assert not folder.exists()
    with home.locked():
        again = home.sockets()
        assert again != folder
    assert not again.exists()


def test_the_home_of_a_checkout_is_the_same_from_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = Path(__file__).resolve().parents[3]
    monkeypatch.chdir(tmp_path)
    assert checkout / ".qflow" == Home.from_env({}).root
    assert tmp_path / "other" == Home.from_env({"QFLOW_HOME": "other"}).root


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StandaloneError, match="QFLOW_HOME: cannot make"):
        Home(tmp_path / "file" / "home").make()


def test_only_the_very_same_living_processes_are_remembered(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.make()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mark = ProcessMark.of(child.pid)
    assert mark is not None
    another = ProcessMark(os.getpid(), 1)  # our pid, but not our start
    home.remember({"alive": mark, "another": another})
    assert home.remembered() == {"alive": mark}
    child.communicate()
    assert home.remembered() == {}


def test_a_private_file_is_replaced_whole(tmp_path: Path) -> None:
    write_private(tmp_path / "a", "first")
    write_private(tmp_path / "a", "second")
    assert (tmp_path / "a").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
