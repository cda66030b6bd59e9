"""Parse documents into workflows; reports all faults with line and column.

The contract's rules for names, times and sizes are not repeated here: they are checked against the
resulting definition, and their faults are mapped to positions in the document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar
from uuid import UUID

from services.registry.domain.constructs import FAILURE
from services.registry.domain.definition import (
    CONNECTIONS_MAX,
    MEMORY_BYTES_DEFAULT,
    NODES_MAX,
    TIMEOUT_MS_DEFAULT,
    Connection,
    Definition,
    Parameter,
    Retry,
    WorkflowInput,
    WorkflowNode,
    WorkflowOutput,
)
from services.registry.domain.document import (
    FAULTS_MAX,
    DocumentError,
    Fault,
    Item,
    joined,
)
from services.registry.domain.exchange import (
    FORMAT,
    Bundle,
    Source,
    digest_of,
    placeholder,
)
from services.registry.domain.exchange_constructs import (
    CONNECTION_KEYS,
    KINDS,
    NODE_KEYS,
    connection_from,
    constructs_from,
    contract_name,
)
from services.registry.domain.exchange_values import Values
from services.registry.domain.node_limits import NAMES as LIMIT_NAMES
from services.registry.domain.node_limits import NodeLimits

T = TypeVar("T")

_NOBODY: Final = UUID(int=0)
_REQUIRED: Final = frozenset({"format", "name", "nodes"})
_OPTIONAL: Final = (
    *("description", "settings", "inputs", "parameters", "connections", "outputs", "sources"),
)


@dataclass(frozen=True, slots=True)
class Read:
    """A parsed document, with the position of each part of the definition and each source."""

    bundle: Bundle
    places: Mapping[str, Fault]

    def at(self, place: str, code: str, message: str) -> Fault:
        """Return a fault with the position of the named part, or of its nearest known parent."""
        while place and place not in self.places:
            place = place[: max(place.rfind("."), place.rfind("["), 0)]
        where = self.places.get(place)
        if where is None:
            return Fault(1, 1, "", code, message)
        return replace(where, code=code, message=message)


def read(document: Item) -> Read:
    """Parse a document; raises DocumentError with all faults."""
    reader = _Reader()
    bundle = reader.bundle(document)
    if reader.faults:
        ordered = sorted(reader.faults, key=lambda each: (each.line, each.column))
        raise DocumentError(ordered[:FAULTS_MAX])
    return Read(bundle, reader.places)


@dataclass(slots=True)
class _Reader(Values):
    def bundle(self, document: Item) -> Bundle:
        found = self.members(document, "", sorted(_REQUIRED), _OPTIONAL)
        told = self.text(found.get("format"), "format")
        if told and told != FORMAT:
            self.add(found["format"], "format", "FORMAT_UNKNOWN", f"must be {FORMAT}")
        for key in ("name", "description"):
            if key in found:
                self.mark(key, found[key], key)
        sources = self._each(found, "sources", self._source)
        keys = {key: placeholder(index) for index, key in enumerate(sources)}
        nodes = self._each(found, "nodes", partial(self._node, keys), limit=NODES_MAX)
        definition = Definition(
            nodes=tuple(nodes.values()),
            connections=self._connections(found.get("connections")),
            inputs=tuple(self._each(found, "inputs", self._input).values()),
            outputs=tuple(self._each(found, "outputs", self._output).values()),
            timeout_ms=self._settings(found.get("settings")),
            parameters=tuple(self._each(found, "parameters", self._parameter).values()),
        )
        self._unused(definition, keys.values())
        return Bundle(
            name=self.text(found.get("name"), "name"),
            description=self.text(found.get("description"), "description"),
            definition=definition,
            sources=sources,
        )

    def _unused(self, definition: Definition, node_ids: Iterable[UUID]) -> None:
        used = {node.node_id for node in definition.nodes if node.construct is None}
        for index, node_id in enumerate(node_ids):
            if node_id not in used:
                where = self.places[f"sources[{index}]"]
                message = "no node of the workflow has this source"
                self.faults.append(replace(where, code="SOURCE_UNUSED", message=message))

    def _each(
        self,
        found: Mapping[str, Item],
        kind: str,
        make: Callable[[int, str, Item, str], T],
        *,
        limit: int = NODES_MAX,
    ) -> dict[str, T]:
        """Apply a function to each member of a mapping, and remember the members' positions."""
        if kind not in found:
            return {}
        members = self.mapping(found[kind], kind)
        if len(members) > limit:
            self.add(found[kind], kind, "TOO_MANY", f"must have at most {limit} members")
            return {}
        made = {}
        for index, (key, item) in enumerate(members.items()):
            self.mark(f"{kind}[{index}]", item, joined(kind, key))
            made[key] = make(index, key, item, joined(kind, key))
        return made

    def _settings(self, item: Item | None) -> int | None:
        if item is None:
            return None
        found = self.members(item, "settings", optional=("timeout_ms",))
        self.mark("settings", item, "settings")
        if "timeout_ms" not in found:
            return None
        self.mark("settings.timeout", found["timeout_ms"], "settings.timeout_ms")
        return self.integer(found["timeout_ms"], "settings.timeout_ms", 1)

    def _source(self, index: int, _: str, item: Item, path: str) -> Source:
        found = self.members(
            item,
            path,
            ("name", "python_version", "main_function"),
            ("description", "code", "digest"),
        )
        code = self.text(found["code"], f"{path}.code") if "code" in found else None
        if (code is None) == ("digest" not in found) and isinstance(item.value, dict):
            self.add(item, path, "KEY_MISSING", "must have either code or digest")
        for key, where in found.items():
            self.mark(f"sources[{index}].{key}", where, f"{path}.{key}")
        texts = {
            key: self.text(found.get(key), f"{path}.{key}")
            for key in ("name", "python_version", "main_function")
        }
        description = None
        if "description" in found:
            description = self.text(found["description"], f"{path}.description")
        digest = self.text(found.get("digest"), f"{path}.digest")
        return Source(
            **texts,
            description=description,
            code=code,
            digest=digest if code is None else digest_of(code),
        )

    def _node(
        self, keys: Mapping[str, UUID], index: int, name: str, item: Item, path: str
    ) -> WorkflowNode:
        found = self.members(
            item,
            path,
            optional=(
                *("source", "pinned", "literals", "variables", "parameters"),
                *("retry", "timeout_ms", "memory_bytes", "limits", *NODE_KEYS),
            ),
        )
        place = f"nodes[{index}]"
        if sum(each in found for each in ("source", *KINDS)) != 1 and isinstance(item.value, dict):
            message = f"must have one of source, {', '.join(KINDS)}"
            self.add(item, path, "KEY_MISSING", message)
        constructs = constructs_from(self, found, name, path)
        for each in NODE_KEYS:
            if each in found:
                self.mark(f"{place}.{contract_name(each)}", found[each], f"{path}.{each}")
        key = self.text(found.get("source"), f"{path}.source")
        if key and key not in keys:
            message = f"there is no {key[:80]} among the sources"
            self.add(found["source"], f"{path}.source", "SOURCE_UNKNOWN", message)
        if "retry" in found:
            self.mark(f"{place}.retry", found["retry"], f"{path}.retry")
        for own, theirs in (("timeout_ms", "timeout"), ("memory_bytes", "memory_limit_bytes")):
            if own in found:
                self.mark(f"{place}.{theirs}", found[own], f"{path}.{own}")
        pinned = self.flag(found.get("pinned"), f"{path}.pinned")
        return WorkflowNode(
            **{"node_id": keys.get(key, _NOBODY), "version": int(pinned), **constructs},
            id=name,
            literals=self._literals(found.get("literals"), place, path),
            variables=self._names(found.get("variables"), f"{place}.variables", path),
            parameters=self._names(found.get("parameters"), f"{place}.parameters", path),
            retry=self._retry(found.get("retry"), f"{path}.retry"),
            timeout_ms=self.integer(
                found.get("timeout_ms"), f"{path}.timeout_ms", TIMEOUT_MS_DEFAULT
            ),
            memory_bytes=self.integer(
                found.get("memory_bytes"), f"{path}.memory_bytes", MEMORY_BYTES_DEFAULT
            ),
            limits=self._limits(found.get("limits"), f"{place}.limits", f"{path}.limits"),
        )

    def _literals(self, item: Item | None, place: str, path: str) -> tuple[tuple[str, str], ...]:
        if item is None:
            return ()
        literals: list[tuple[str, str]] = []
        for name, value in self.mapping(item, f"{path}.literals").items():
            here = joined(f"{path}.literals", name)
            self.mark(f"{place}.literals[{len(literals)}]", value, here)
            literals.append((name, self.value_text(value, here)))
        return tuple(literals)

    def _names(self, item: Item | None, place: str, path: str) -> tuple[tuple[str, str], ...]:
        """Parse which variables or parameters feed inputs, by input name."""
        if item is None:
            return ()
        kind = place.rpartition(".")[2]
        names: list[tuple[str, str]] = []
        for name, value in self.mapping(item, f"{path}.{kind}").items():
            here = joined(f"{path}.{kind}", name)
            self.mark(f"{place}[{len(names)}]", value, here)
            names.append((name, self.text(value, here)))
        return tuple(names)

    def _limits(self, item: Item | None, place: str, path: str) -> NodeLimits:
        if item is None:
            return NodeLimits()
        found = self.members(item, path, optional=LIMIT_NAMES)
        for name, value in found.items():
            self.mark(f"{place}.{name}", value, f"{path}.{name}")
        return NodeLimits.from_json(
            {name: self.integer(value, f"{path}.{name}", 0) for name, value in found.items()}
        )

    def _retry(self, item: Item | None, path: str) -> Retry | None:
        if item is None:
            return None
        default = Retry()
        names = ("max_retries", "initial_delay_ms", "factor", "max_delay_ms", "jitter")
        found = self.members(item, path, optional=(*names, "retryable", "non_retryable"))

        def whole(name: str, otherwise: int) -> int:
            return self.integer(found.get(name), f"{path}.{name}", otherwise)

        return Retry(
            max_retries=min(whole("max_retries", default.max_retries), 2**31 - 1),
            initial_delay_ms=whole("initial_delay_ms", default.initial_delay_ms),
            factor=self.real(found.get("factor"), f"{path}.factor", default.factor),
            max_delay_ms=whole("max_delay_ms", default.max_delay_ms),
            jitter=self.real(found.get("jitter"), f"{path}.jitter", default.jitter),
            retryable=self.texts(found.get("retryable"), f"{path}.retryable"),
            non_retryable=self.texts(found.get("non_retryable"), f"{path}.non_retryable"),
        )

    def _input(self, index: int, name: str, item: Item, path: str) -> WorkflowInput:
        found = self.members(item, path, optional=("type", "default"))
        type_text, default = self._typed(found, f"inputs[{index}]", path)
        return WorkflowInput(name=name, type_text=type_text, default_json=default)

    def _parameter(self, index: int, name: str, item: Item, path: str) -> Parameter:
        found = self.members(item, path, optional=("type", "description", "default"))
        place = f"parameters[{index}]"
        type_text, default = self._typed(found, place, path)
        if "description" in found:
            self.mark(f"{place}.description", found["description"], f"{path}.description")
        description = self.text(found.get("description"), f"{path}.description")
        return Parameter(
            name=name, type_text=type_text, description=description, default_json=default
        )

    def _typed(self, found: Mapping[str, Item], place: str, path: str) -> tuple[str, str | None]:
        """Return the type and the default of a mapping, as JSON texts."""
        type_text, default = "", None
        if "type" in found:
            self.mark(f"{place}.type_json", found["type"], f"{path}.type")
            type_text = self.value_text(found["type"], f"{path}.type")
        if "default" in found:
            self.mark(f"{place}.default_json", found["default"], f"{path}.default")
            default = self.value_text(found["default"], f"{path}.default")
        return type_text, default

    def _connections(self, item: Item | None) -> tuple[Connection, ...]:
        items = self.sequence(item, "connections")
        if item is not None and len(items) > CONNECTIONS_MAX:
            message = f"must have at most {CONNECTIONS_MAX} items"
            self.add(item, "connections", "TOO_MANY", message)
            return ()
        return tuple(self._connection(each, f"connections[{i}]") for i, each in enumerate(items))

    def _connection(self, item: Item, path: str) -> Connection:
        keys = ("from", "input", "conversion", *CONNECTION_KEYS)
        found = self.members(item, path, ("to",), keys)
        self.mark(path, item, path)
        if ("from" in found) == ("input" in found) and isinstance(item.value, dict):
            message = "must come either from a node or from an input of the workflow"
            self.add(item, path, "KEY_MISSING", message)
        kind, branch = connection_from(self, found, path)
        # Edges that carry nothing have no ports; a failure edge may have them.
        bare = bool(kind) and not (kind == FAILURE and "." in self._shown(found.get("to")))
        source = ("", self.text(found.get("input"), f"{path}.input"))
        if "from" in found:
            source = self._end(found["from"], f"{path}.from", bare=bare)
        target = self._end(found["to"], f"{path}.to", bare=bare) if "to" in found else ("", "")
        return Connection(
            source=source[0],
            source_output=source[1],
            target=target[0],
            target_input=target[1],
            conversion=self.text(found.get("conversion"), f"{path}.conversion"),
            kind=kind,
            branch=branch,
        )

    @staticmethod
    def _shown(item: Item | None) -> str:
        return item.value if item is not None and isinstance(item.value, str) else ""

    def _end(self, item: Item, path: str, *, bare: bool = False) -> tuple[str, str]:
        """Parse `node.name`, or a node alone; ids of nodes contain no dots, but names may."""
        if bare and "." not in self._shown(item):
            return self.text(item, path), ""
        node, dot, name = self.text(item, path).partition(".")
        if not (node and dot and name) and isinstance(item.value, str):
            message = "must be a node's id, a dot, and the name of its input or output"
            self.add(item, path, "VALUE_INVALID", message)
        return node, name

    def _output(self, index: int, name: str, item: Item, path: str) -> WorkflowOutput:
        node, output = self._end(item, path)
        del index
        return WorkflowOutput(name=name, node=node, output=output)
