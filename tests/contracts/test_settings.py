"""Every setting of the contract is in the table, with its limits, and something enforces it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from qflow.registry.v1 import workflow_pb2

from services.orchestrator.domain import plan
from services.registry.domain import setting_table as table
from services.registry.domain.setting_table import SETTINGS, Level, Setting

_ROOT = Path(__file__).parents[2]
# What a workflow node says besides settings: which it is, what feeds it, and its part in the graph.
_NO_SETTINGS = {
    *("id", "node_id", "version", "literals", "variables", "parameters"),
    *("choice", "sleep", "signal", "approval", "sub_workflow"),
    *("join", "condition", "on_failure", "phase", "compensates", "for_each", "repeat"),
    *("retry.retryable_errors", "retry.non_retryable_errors"),
}
_BY_NAME = {each.name: each for each in SETTINGS}


def _fields(message: Descriptor, prefix: str = "") -> Iterator[tuple[str, FieldDescriptor]]:
    for field in message.fields:
        inner = field.message_type
        if inner is not None and inner.file is message.file and not inner.GetOptions().map_entry:
            yield from _fields(inner, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field


def _of_contract() -> dict[str, FieldDescriptor]:
    node = workflow_pb2.WorkflowNode.DESCRIPTOR
    found = dict(_fields(workflow_pb2.WorkflowSettings.DESCRIPTOR, "settings."))
    for field in node.fields:
        if field.name not in _NO_SETTINGS:
            inner = field.message_type
            if inner is not None and inner.file is node.file:
                found |= _fields(inner, f"{field.name}.")
            else:
                found[field.name] = field
    return {name: each for name, each in found.items() if name not in _NO_SETTINGS}


def test_the_table_has_every_setting_of_the_contract_and_no_other() -> None:
    """A setting that nothing enforces cannot be added unseen."""
    # The Python of a node is said by its source, not by a field of the workflow.
    assert {*_of_contract()} | {"python_version"} == {*_BY_NAME}
    assert len(_BY_NAME) == len(SETTINGS)


@pytest.mark.parametrize("name", _of_contract())
def test_the_contract_has_the_limits_of_the_table(name: str) -> None:
    """B54."""
    field = _of_contract()[name]
    rules = field.GetOptions().Extensions[validate_pb2.field]
    setting = _BY_NAME[name]
    kind = rules.WhichOneof("type")
    assert kind is not None, name
    of = getattr(rules, kind)
    if kind in ("enum", "map", "repeated"):  # a choice, or names and texts: the contract says which
        assert (setting.minimum, setting.maximum) == (None, None)
        assert kind != "enum" or of.defined_only
        return
    limits = [of.gte, of.lte]
    if kind == "duration":
        limits = [each.seconds * 1000 + each.nanos / 1_000_000 for each in limits]
    assert [setting.minimum, setting.maximum] == limits


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda each: each.name)
def test_a_setting_names_who_enforces_it_and_the_test_that_sees_it(setting: Setting) -> None:
    assert (_ROOT / "services" / setting.enforced_by).is_dir()
    assert setting.enforcement
    assert setting.levels
    path, _, name = setting.proof.partition("::")
    functions = {
        node.name
        for node in ast.walk(ast.parse((_ROOT / path).read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert name in functions


def test_what_the_engine_takes_for_granted_is_what_the_table_says() -> None:
    """The services share no code, so their defaults could part."""
    policy = plan.RetryPolicy()
    assert [
        plan.NODE_TIMEOUT_MS_DEFAULT,
        plan.NODE_MEMORY_BYTES_DEFAULT,
        policy.max_retries,
        policy.initial_delay_ms,
        policy.factor,
        policy.max_delay_ms,
        policy.jitter,
    ] == [
        each.default
        for each in (
            table.NODE_TIMEOUT,
            table.MEMORY_LIMIT,
            table.MAX_RETRIES,
            table.INITIAL_DELAY,
            table.FACTOR,
            table.MAX_DELAY,
            table.JITTER,
        )
    ]


def test_a_setting_stands_at_the_level_its_name_says() -> None:
    for setting in SETTINGS:
        assert setting.name.startswith("settings.") == (setting.levels == (Level.WORKFLOW,))
