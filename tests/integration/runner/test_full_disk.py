"""A runner whose disk is full: the attempt is told so, and nothing of it stays."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from services.kit.pg import Pool
from services.runner.domain.attempts import AttemptRequest
from services.runner.domain.limits import Limits, Tier
from services.runner.domain.outcome import ErrorType
from services.runner.gateways.file_store import FileStore
from services.runner.gateways.sandbox.port import Reply, Sandbox
from services.runner.usecases.carried import CarriedFiles, Lent, NotCarried
from services.runner.usecases.outputs import Outputs
from tests.integration.runner.test_environment_room import small_disk

__all__ = ["small_disk"]

_TOO_MUCH = 32 * 1024 * 1024
_NO_DATABASE = cast("Pool", None)  # what cannot be stored never gets there


def request() -> AttemptRequest:
    return AttemptRequest(
        attempt_ref=uuid.uuid4(),
        token=1,
        execution_id=uuid.uuid4(),
        tenant_id=uuid.uuid4(),
        node_id="a",
        node_version_id=uuid.uuid4(),
        attempt=1,
        inputs=(),
        outputs=("result",),
        timeout_s=1,
    )


def assert_told_and_gone(refused: NotCarried, disk: Path) -> None:
    assert (ErrorType.ENVIRONMENT, True) == (refused.error.type, refused.error.retryable)
    assert "No space left on device" in refused.error.message
    assert [] == [each for each in disk.rglob("*") if each.is_file()]
    (disk / "room").write_bytes(b"x" * (1 << 20))  # it is whole again


async def test_a_value_that_the_disk_does_not_take_fails_its_attempt_alone(
    small_disk: Path,
) -> None:
    """F27, CP10."""
    outputs = Outputs(FileStore(small_disk), _NO_DATABASE)
    with pytest.raises(NotCarried) as refused:
        await outputs.save(request(), [("result", b'"%s"' % (b"x" * _TOO_MUCH))])
    assert_told_and_gone(refused.value, small_disk)


async def test_a_file_that_the_disk_does_not_take_fails_its_attempt_alone(
    small_disk: Path,
) -> None:
    """F27, CP11."""
    descriptor = os.memfd_create("value")
    os.truncate(descriptor, _TOO_MUCH)
    file_id = str(uuid.uuid4())
    sandbox: Any = SimpleNamespace(tier=Tier.T2, spec=SimpleNamespace(limits=Limits()))
    carried = CarriedFiles(FileStore(small_disk), _NO_DATABASE)
    reply = Reply(
        header={"op": "result", "files": [[file_id, "", "value.bin"]]}, descriptors=(descriptor,)
    )
    with pytest.raises(NotCarried) as refused:
        await carried.take(
            request(), cast("Sandbox", sandbox), Lent(header={}, ids=[file_id]), reply
        )
    assert_told_and_gone(refused.value, small_disk)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
