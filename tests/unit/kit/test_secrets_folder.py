"""Settings that lie as files: QFLOW_SECRETS_FOLDER."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.kit import env


def test_files_named_as_settings_are_settings(tmp_path: Path) -> None:
    (tmp_path / "QFLOW_SERVICE_TOKEN").write_text("tok\n")
    (tmp_path / "service.key").write_text("of the transport\n")
    read = env.with_secrets({"QFLOW_SECRETS_FOLDER": str(tmp_path), "QFLOW_HOME": "/somewhere"})
    assert {
        "QFLOW_SECRETS_FOLDER": str(tmp_path),
        "QFLOW_HOME": "/somewhere",
        "QFLOW_SERVICE_TOKEN": "tok",
    } == dict(read)


def test_what_is_set_in_the_environment_wins_unless_it_is_empty(tmp_path: Path) -> None:
    for name in ("QFLOW_A", "QFLOW_B"):
        (tmp_path / name).write_text("of the file")
    given = {"QFLOW_SECRETS_FOLDER": str(tmp_path), "QFLOW_A": "set", "QFLOW_B": ""}
    read = env.with_secrets(given)
    assert ("set", "of the file") == (read["QFLOW_A"], read["QFLOW_B"])


def test_without_the_setting_nothing_is_read(tmp_path: Path) -> None:
    given = {"QFLOW_HOME": str(tmp_path)}
    assert given is env.with_secrets(given)


def test_the_links_by_which_kubernetes_lays_secrets_out_are_followed(tmp_path: Path) -> None:
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / "QFLOW_SERVICE_TOKEN").write_text("tok")
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "QFLOW_SERVICE_TOKEN").symlink_to("..data/QFLOW_SERVICE_TOKEN")
    read = env.with_secrets({"QFLOW_SECRETS_FOLDER": str(tmp_path)})
    assert "tok" == read["QFLOW_SERVICE_TOKEN"]


@pytest.mark.parametrize("content", [b"two\nlines\n", b"\xff\xfe", b"x" * 70_000])
def test_a_file_that_is_no_line_of_text_is_named_and_its_content_is_not(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "QFLOW_SERVICE_TOKEN").write_bytes(content)
    with pytest.raises(env.EnvError) as refused:
        env.with_secrets({"QFLOW_SECRETS_FOLDER": str(tmp_path)})
    assert "QFLOW_SECRETS_FOLDER: QFLOW_SERVICE_TOKEN must be one line of text" == str(
        refused.value
    )


def test_a_folder_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(env.EnvError, match="QFLOW_SECRETS_FOLDER cannot be read: No such file"):
        env.with_secrets({"QFLOW_SECRETS_FOLDER": str(tmp_path / "none")})
