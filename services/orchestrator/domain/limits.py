"""Limits: which runs and attempts need slots, and under which key they are counted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

from services.kit.cel import VALUES_BYTES_MAX, Expression, ExpressionError, compile_expression
from services.orchestrator.domain.state import Run

# The name of the run's inputs in key expressions, and how long the inputs read may be.
INPUT: Final = "input"
INPUT_BYTES_MAX: Final = 4096
KEY_CHARS_MAX: Final = 200
# Keys that are no JSON text: of limits without a key expression, and of runs whose key is unknown.
NO_KEY: Final = ""
UNKNOWN_KEY: Final = "?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A limit as the engine needs it; its amounts are checked in the database."""

    id: UUID
    tenant_id: UUID
    name: str
    revision: int
    workflow_id: UUID | None = None  # limits runs of a workflow
    node_id: UUID | None = None  # limits attempts at a node; with neither: all attempts
    owner_id: UUID | None = None  # limits only runs that this user started
    per_owner: bool = False  # counts each user separately
    key: Expression | None = None

    def is_of(self, run: Run) -> bool:
        """Return whether it applies to runs of the user who started this one."""
        return self.owner_id is None or self.owner_id == run.created_by


class Demand(NamedTuple):
    """A slot needed of a limit, under one key."""

    limit_id: UUID
    key: str


# All slots that something needs before it continues, ordered by limit id.
Lane: TypeAlias = tuple[Demand, ...]


class Claim(NamedTuple):
    """Slots that are acquired or requested: one row per demand."""

    lane: Lane
    slots: tuple[UUID, ...]


@lru_cache(maxsize=1000)
def compile_key(text: str) -> Expression | None:
    """Compile a key, once: all limits are read again whenever one of them changes.

    `ExpressionError` says what is wrong with it.
    """
    return compile_expression(text, {INPUT}) if text else None


def key_of(key: Expression | None, values: Mapping[str, bytes]) -> str:
    """Return the key under which a run with these inputs is counted."""
    if key is None:
        return NO_KEY
    parts, size = [], 0
    for name, value in values.items():
        part = json.dumps(name).encode() + b":" + value
        size += len(part) + 1
        if len(value) <= INPUT_BYTES_MAX and size < VALUES_BYTES_MAX - 2:
            parts.append(part)
        elif len(value) <= INPUT_BYTES_MAX:
            break
        else:
            size -= len(part) + 1
    try:
        answer = key.evaluate({INPUT: b"{" + b",".join(parts) + b"}"})
        text = json.dumps(answer, sort_keys=True, default=str)
    except (ExpressionError, TypeError, ValueError, RecursionError):
        return UNKNOWN_KEY
    if len(text) > KEY_CHARS_MAX:
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    return text


class Limits:
    """The limits of all tenants, and the keys of runs."""

    def __init__(self, limits: Iterable[Limit] = ()) -> None:
        self.by_id = {each.id: each for each in sorted(limits, key=lambda each: each.id)}
        self._of_tenant: dict[UUID, list[Limit]] = {}
        for each in self.by_id.values():
            self._of_tenant.setdefault(each.tenant_id, []).append(each)
        self._keys: dict[UUID, dict[UUID, str]] = {}

    def of_run(self, run: Run) -> Lane:
        """Return the demands of a run before it begins."""
        limits = self._of_tenant.get(run.tenant_id)
        if limits is None or run.plan.workflow_id is None:
            return ()
        workflow_id = run.plan.workflow_id
        return tuple(
            self._demand(run, each)
            for each in limits
            if each.workflow_id == workflow_id and each.is_of(run)
        )

    def of_slot(self, run: Run, slot: int) -> Lane:
        """Return the demands of an attempt at a slot."""
        limits = self._of_tenant.get(run.tenant_id) if self._of_tenant else None
        if limits is None:
            return ()
        node_id = run.place(slot).node_id
        return tuple(
            self._demand(run, each)
            for each in limits
            if each.workflow_id is None and each.node_id in (None, node_id) and each.is_of(run)
        )

    def forget(self, run_id: UUID) -> None:
        """Drop the keys of a run."""
        self._keys.pop(run_id, None)

    def _demand(self, run: Run, limit: Limit) -> Demand:
        if limit.key is None and not limit.per_owner:
            return Demand(limit.id, NO_KEY)
        keys = self._keys.setdefault(run.id, {})
        key = keys.get(limit.id)
        if key is None:
            key = key_of(limit.key, run.input_values)
            if limit.per_owner:
                key = f"{run.created_by} {key}" if key else str(run.created_by)
            keys[limit.id] = key
        return Demand(limit.id, key)
