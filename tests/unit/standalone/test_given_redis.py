"""A Redis of the operator's own: whether it answers is told, and stops nothing."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from services.standalone.home import Home
from services.standalone.process import StandaloneError
from services.standalone.supervisor import Supervisor


def cache_of(url: str, folder: Path) -> str:
    suite = Supervisor(Home(folder), {"QFLOW_REDIS_URL": url}, ports="auto", say=print)
    assert url == suite._start_redis()
    return suite.cache


def test_one_that_listens_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert "Redis at 127.0.0.1" == cache_of(f"redis://127.0.0.1:{port}/0", tmp_path)
    path = tmp_path / "redis.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        assert "Redis at a local socket" == cache_of(f"unix://{path}", tmp_path)


def test_one_that_does_not_answer_is_told_and_the_start_goes_on(tmp_path: Path) -> None:
    for url in ("redis://127.0.0.1:1", f"unix://{tmp_path}/nothing.sock"):
        assert "DOES NOT ANSWER (QFLOW_REDIS_URL)" in cache_of(url, tmp_path)


@pytest.mark.parametrize("url", ["127.0.0.1:6379", "redis://:secret@host:port/0", "http://host"])
def test_what_is_no_address_of_redis_is_refused_with_its_form(url: str, tmp_path: Path) -> None:
    with pytest.raises(StandaloneError, match="QFLOW_REDIS_URL must look like") as refused:
        cache_of(url, tmp_path)
    assert "secret" not in str(refused.value)
