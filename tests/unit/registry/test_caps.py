"""What a deployment lets no node go beyond."""

from __future__ import annotations

import pytest

from services.kit.env import EnvError
from services.registry.domain import setting_table as table
from services.registry.domain.setting_table import Level
from services.registry.settings import _caps
from services.registry.usecases.effective_settings import Effective, _capped

_ENV = {"QFLOW_NODE_TIMEOUT_S_MAX": "1.5", "QFLOW_NODE_MEMORY_BYTES_MAX": str(1 << 20)}


def test_a_cap_is_in_the_unit_of_its_setting() -> None:
    assert {"timeout": 1500, "memory_limit_bytes": 1 << 20} == _caps(_ENV)
    assert {} == _caps({})
    with pytest.raises(EnvError, match="QFLOW_NODE_TIMEOUT_S_MAX"):
        _caps({"QFLOW_NODE_TIMEOUT_S_MAX": "soon"})


def test_what_is_more_than_the_cap_is_the_cap_and_of_the_deployment() -> None:
    caps = _caps(_ENV)
    default = Effective(table.NODE_TIMEOUT, table.NODE_TIMEOUT.default, None)
    assert Effective(table.NODE_TIMEOUT, 1500, Level.DEPLOYMENT) == _capped(default, caps)
    less = Effective(table.NODE_TIMEOUT, 1000, Level.NODE)
    assert less == _capped(less, caps)
    other = Effective(table.PROCESSES, 10_000, Level.NODE)
    assert other == _capped(other, caps)
