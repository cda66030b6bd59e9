"""Export workflows as documents, and import documents with the nodes that they need."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

import orjson
import structlog

from services.kit.caller import Caller
from services.kit.errors import (
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    PermissionDenied,
)
from services.kit.idempotency import Replayed, RequestKey, replay, write_once
from services.kit.pg import Db, as_caller
from services.registry.domain.definition import ERROR, INFO, Checked, Definition
from services.registry.domain.document import DocumentError, Fault
from services.registry.domain.exchange import Bundle, Source, bundled, placeholder
from services.registry.domain.exchange_reading import Read
from services.registry.domain.stored import inputs_to_json, outputs_to_json
from services.registry.domain.texts import description_from, name_from
from services.registry.gateways.documents import Documents, Format
from services.registry.storage import sources as source_rows
from services.registry.storage import variables
from services.registry.storage.nodes import Node
from services.registry.storage.sources import Stored
from services.registry.usecases import nodes, workflows
from services.registry.usecases.node_source import Draft
from services.registry.usecases.nodes import NodeAnswer, Nodes
from services.registry.usecases.signatures import pinned_to_others, python_places, standing_in
from services.registry.usecases.workflows import Workflows

log = structlog.get_logger()

CODE_BYTES_MAX: Final = 4 * 1024 * 1024
CREATED_MAX: Final = 500
_FOUND_MAX: Final = 10_000
_SHOWN_MAX: Final = 20

# Checks a definition against the contract's rules; returns place, code and message per violation.
Rules = Callable[[Definition], Sequence[tuple[str, str, str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """What export and import depend on."""

    nodes: Nodes
    workflows: Workflows
    documents: Documents


@dataclass(frozen=True, slots=True)
class ImportedNode:
    """The node that a source of the document became."""

    key: str
    node_id: UUID
    version: int
    created: bool


@dataclass(frozen=True, slots=True)
class Imported:
    """An imported workflow, with its nodes in the document's order."""

    answer: workflows.WorkflowAnswer
    nodes: tuple[ImportedNode, ...]


async def export_workflow(
    deps: Exchange,
    caller: Caller,
    workflow_id: UUID,
    *,
    version: int,
    form: Format,
    with_code: bool,
) -> str:
    """Export a workflow as a document, with or without the code of its nodes."""
    if with_code and not caller.has_scope("nodes:read"):
        raise PermissionDenied(
            "NOT_ALLOWED", "the sources of nodes need the scope nodes:read", scope="nodes:read"
        )
    workflow = await workflows.get_workflow(
        deps.workflows.pool, caller, workflow_id, version=version
    )
    asked = python_places(workflow.definition)
    async with as_caller(deps.workflows.pool, caller) as db:
        found = await source_rows.get_sources(db, asked, tenant_id=caller.tenant_id)
        _require_readable(workflow.definition, found)
        sources = {key: each.source for key, each in found.items()}
        if with_code:
            sources = await _with_code(db, found)
    return await deps.documents.write(
        bundled(workflow.name, workflow.description, workflow.definition, sources), form
    )


def _require_readable(definition: Definition, found: Mapping[tuple[UUID, int], Stored]) -> None:
    gone = [
        FieldViolation(f"nodes[{index}]", f"the node of {each.id} no longer exists")
        for index, each in enumerate(definition.nodes)
        if each.construct is None and (each.node_id, each.version) not in found
    ]
    if gone:
        raise FailedPrecondition(
            "NODE_MISSING",
            f"{len(gone)} nodes of the workflow cannot be read any more: {gone[0].description}",
            fields=gone[:_SHOWN_MAX],
        )


async def _with_code(
    db: Db, found: Mapping[tuple[UUID, int], Stored]
) -> dict[tuple[UUID, int], Source]:
    """Add code to sources, reading equal code once; raises if the total is too large."""
    first = {each.source.digest: each for each in found.values()}
    if sum(each.code_bytes for each in first.values()) > CODE_BYTES_MAX:
        raise FailedPrecondition(
            "EXPORT_TOO_LARGE",
            f"the sources of the nodes have more than {CODE_BYTES_MAX} bytes in all;"
            " export without them",
        )
    codes = await source_rows.get_codes(db, [(e.node_id, e.version) for e in first.values()])
    texts = {each.source.digest: codes[each.node_id, each.version] for each in first.values()}
    return {
        key: replace(each.source, code=texts[each.source.digest]) for key, each in found.items()
    }


async def import_workflow(
    deps: Exchange,
    caller: Caller,
    text: str,
    form: Format,
    *,
    rules: Rules,
    name: str = "",
    activate: bool = False,
    key: RequestKey[Imported] | None = None,
    validate_only: bool = False,
    guard: Callable[[Imported], None] = lambda _: None,
) -> Imported | Replayed:
    """Import a workflow from a document; finds or creates its nodes, all or nothing."""
    if name:
        name_from(name)
    earlier = await replay(deps.workflows.pool, caller, key)
    if earlier is not None:
        return earlier
    try:
        document = await deps.documents.read(text, form)
    except DocumentError as error:
        raise _refused(error.faults) from None
    plan = await _planned(deps, caller, document, rules)
    workflow = workflows.first_version(
        caller,
        name=name or document.bundle.name,
        description=document.bundle.description,
        definition=plan.checked.definition,
        python_version=plan.python_version or deps.workflows.python_version,
        activate=activate,
        validate_only=validate_only,
    )
    _require_complete(plan.checked, document, complete=activate)
    shown = Imported(
        workflows.WorkflowAnswer(workflow, plan.checked.findings),
        tuple(_shown(each, validate_only=validate_only) for each in plan.nodes),
    )
    guard(shown)
    if validate_only:
        return shown

    async def write(db: Db) -> Imported:
        for draft in plan.created:
            await nodes.insert_node(db, draft)
        stored = await workflows.insert_workflow(db, workflow)
        return replace(shown, answer=replace(shown.answer, workflow=stored))

    written = await write_once(deps.workflows.pool, caller, key, write)
    if isinstance(written, Imported):
        log.info("workflow_imported", workflow_id=str(workflow.id), nodes_created=len(plan.created))
        waiting = (nodes.when_locked(deps.nodes, caller, each) for each in plan.created)
        await asyncio.gather(*waiting)
    return written


@dataclass(frozen=True, slots=True)
class _Plan:
    """The plan of an import: the definition over real nodes, and the nodes to create."""

    checked: Checked
    python_version: str
    nodes: tuple[ImportedNode, ...]
    created: tuple[NodeAnswer, ...]


async def _planned(deps: Exchange, caller: Caller, document: Read, rules: Rules) -> _Plan:
    """Find or draft every node and check the graph; raises all faults at once."""
    bundle = document.bundle
    faults = [document.at(*each) for each in rules(bundle.definition)]
    faults += _faults_of_texts(document)
    async with as_caller(deps.workflows.pool, caller) as db:
        found = await source_rows.find_sources(
            db, list(bundle.sources.values()), tenant_id=caller.tenant_id, limit=_FOUND_MAX
        )
    known = _matches(bundle, found)
    drafts = await _drafted(deps, caller, document, known, faults)
    if faults:
        raise _refused(faults)
    chosen = [
        ImportedNode(key, known[key].node_id, known[key].version, created=False)
        if key in known
        else ImportedNode(key, drafts[key].node.id, 1, created=True)
        for key in bundle.sources
    ]
    definition, pinned = await pinned_to_others(
        deps.workflows.pool, caller, _over(bundle.definition, chosen)
    )
    async with as_caller(deps.workflows.pool, caller) as db:
        standing = await standing_in(db, definition, besides=_ids(drafts.values()))
        known_variables = await variables.get_types(db, definition.variables, None)
    signatures = standing.signatures
    for draft in drafts.values():
        node = draft.node
        signatures[node.id, 0] = signatures[node.id, 1] = _signature(node)
    checked = await deps.workflows.checker.check(definition, signatures, known_variables)
    checked = replace(checked, findings=(*checked.findings, *standing.findings, *pinned))
    errors = [each for each in checked.findings if each.severity == ERROR]
    if errors:
        raise _refused([document.at(e.place, e.code, _hinted(e.message, e.hint)) for e in errors])
    python = workflows.python_of(standing, "")
    return _Plan(checked, python, tuple(chosen), tuple(drafts.values()))


def _ids(drafts: Iterable[NodeAnswer]) -> set[UUID]:
    return {each.node.id for each in drafts}


def _signature(node: Node) -> dict[str, str]:
    return {
        "python_version": node.python_version,
        "input_types": orjson.dumps(inputs_to_json(node.inputs)).decode(),
        "output_types": orjson.dumps(outputs_to_json(node.outputs)).decode(),
        "is_async": "yes" if node.is_async else "",
    }


def _faults_of_texts(document: Read) -> list[Fault]:
    faults = []
    for field, check in (("name", name_from), ("description", description_from)):
        try:
            check(getattr(document.bundle, field))
        except InvalidArgument as error:
            faults.append(document.at(field, error.reason, str(error)))
    return faults


def _matches(bundle: Bundle, found: Sequence[Stored]) -> dict[str, Stored]:
    """Choose existing nodes whose content equals the document's sources.

    A floating reference matches only a node's current version.
    """
    nodes = (each for each in bundle.definition.nodes if each.construct is None)
    floating = {each.node_id for each in nodes if not each.version}
    by_content: dict[tuple[str, str], list[Stored]] = {}
    for each in found:
        by_content.setdefault((each.source.name, each.source.digest), []).append(each)
    chosen = {}
    for index, (key, source) in enumerate(bundle.sources.items()):
        for each in by_content.get((source.name, source.digest), ()):
            # If the document holds the code, only the caller's own node matches; a source given by
            # digest alone may also be another tenant's node.
            reachable = each.is_own or source.code is None
            current = each.is_current or placeholder(index) not in floating
            if reachable and current and _is_same(source, each.source):
                chosen[key] = each
                break
    return chosen


def _is_same(told: Source, stored: Source) -> bool:
    description = stored.description if told.description is None else told.description
    return stored == replace(told, description=description, code=None)


async def _drafted(
    deps: Exchange,
    caller: Caller,
    document: Read,
    known: Mapping[str, Stored],
    faults: list[Fault],
) -> dict[str, NodeAnswer]:
    """Draft the sources that no node has yet; adds what is wrong with any to `faults`."""
    missing = [
        (index, key, source)
        for index, (key, source) in enumerate(document.bundle.sources.items())
        if key not in known
    ]
    for index, _, source in missing:
        if source.code is None:
            message = "there is no node of this name and content; import a text with its code"
            faults.append(document.at(f"sources[{index}]", "NODE_NOT_FOUND", message))
    coded = [each for each in missing if each[2].code is not None]
    if coded and not caller.has_scope("nodes:write"):
        raise PermissionDenied(
            "NOT_ALLOWED", "creating nodes needs the scope nodes:write", scope="nodes:write"
        )
    if len(coded) > CREATED_MAX:
        message = f"{len(coded)} nodes would be created; import at most {CREATED_MAX} at once"
        faults.append(document.at("sources", "TOO_MANY", message))
        return {}
    outcomes = await asyncio.gather(
        *(_draft(deps, caller, document, index, source) for index, _, source in coded)
    )
    drafts = {}
    for (_, key, _), outcome in zip(coded, outcomes, strict=True):
        if isinstance(outcome, NodeAnswer):
            drafts[key] = outcome
        else:
            faults += outcome
    return drafts


async def _draft(
    deps: Exchange, caller: Caller, document: Read, index: int, source: Source
) -> NodeAnswer | list[Fault]:
    faults: list[Fault] = []
    texts = {"name": source.name, "description": source.description or ""}
    for field, check in (("name", name_from), ("description", description_from)):
        try:
            check(texts[field])
        except InvalidArgument as error:
            faults.append(document.at(f"sources[{index}].{field}", error.reason, error.message))
            texts[field] = "-"  # go on, so that faults of the code are reported too
    draft = Draft(
        name=texts["name"],
        description=texts["description"],
        code=source.code or "",
        main_function=source.main_function,
        python_version=source.python_version,
    )
    try:
        drafted = await nodes.drafted(deps.nodes, caller, draft)
    except InvalidArgument as error:
        told = error.fields or [FieldViolation("code", error.message, error.reason)]
        faults += [
            document.at(
                f"sources[{index}].{each.field}", each.reason or error.reason, each.description
            )
            for each in told
        ]
        return faults
    # The document's description wins, even an empty one, so that an export imports unchanged.
    if source.description is not None:
        drafted = replace(drafted, node=replace(drafted.node, description=source.description))
    return faults or drafted


def _over(definition: Definition, chosen: Sequence[ImportedNode]) -> Definition:
    """Replace the document's placeholders by real nodes."""
    by_placeholder = {placeholder(index): each for index, each in enumerate(chosen)}
    placed = []
    for node in definition.nodes:
        if node.construct is not None:
            placed.append(node)
            continue
        real = by_placeholder[node.node_id]
        version = real.version if node.version else 0
        placed.append(replace(node, node_id=real.node_id, version=version))
    return replace(definition, nodes=tuple(placed))


def _shown(node: ImportedNode, *, validate_only: bool) -> ImportedNode:
    return replace(node, node_id=UUID(int=0)) if node.created and validate_only else node


def _require_complete(checked: Checked, document: Read, *, complete: bool) -> None:
    hindering = [each for each in checked.findings if each.severity != INFO]
    if complete and hindering:
        found = [document.at(e.place, e.code, _hinted(e.message, e.hint)) for e in hindering]
        raise FailedPrecondition(
            "WORKFLOW_INCOMPLETE",
            f"the workflow cannot be started as it is: {_summary(found)}",
            fields=[_violation(each) for each in found],
        )


def _refused(faults: Sequence[Fault]) -> InvalidArgument:
    ordered = sorted(faults, key=lambda each: (each.line, each.column))
    codes = {each.code for each in faults}
    return InvalidArgument(
        codes.pop() if len(codes) == 1 else "IMPORT_INVALID",
        _summary(ordered),
        fields=[_violation(each) for each in ordered],
    )


def _summary(faults: Sequence[Fault]) -> str:
    more = f"; and {len(faults) - 1} more" if len(faults) > 1 else ""
    return f"{_placed(faults[0])}{more}"


def _violation(fault: Fault) -> FieldViolation:
    return FieldViolation("text", _placed(fault), fault.code)


def _placed(fault: Fault) -> str:
    path = f" ({fault.path})" if fault.path else ""
    return f"line {fault.line}, column {fault.column}{path}: {fault.message}"


def _hinted(message: str, hint: str) -> str:
    return f"{message}; {hint}" if hint else message
