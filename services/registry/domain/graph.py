"""The checks of a definition: every fault at once, each with its place, and a verdict per edge.

All walks are loops over lists: a chain of 10,000 nodes is as good as any other graph.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from qflow.types import (
    ANY,
    LOSSLESS,
    Type,
    TypeFormatError,
    ValueTextError,
    Verdict,
    VerdictKind,
    check_value,
    contains_named,
    expression,
    from_text,
    parse_strict,
    verdict,
)
from qflow.types.verdict import widens

from services.registry.domain.bindings import Bindings
from services.registry.domain.definition import (
    CONNECTIONS_MAX,
    ERROR,
    INFO,
    NODES_MAX,
    WARNING,
    Checked,
    Connection,
    Definition,
    Finding,
    InputSpec,
    Signature,
    Signatures,
    WorkflowInput,
    WorkflowNode,
    WorkflowOutput,
)
from services.registry.domain.setting_table import outside
from services.registry.domain.type_size import type_size

FINDINGS_MAX: Final = 1_000
# What an answer carries of types besides the graph itself: the largest star has 10,000 outputs.
TYPE_PARTS_MAX: Final = 50_000
# One input of the workflow: its types are compared each with each.
_TYPES_PER_INPUT_MAX: Final = 100
_CYCLE_SHOWN_MAX: Final = 20
_SUGGESTED_MAX: Final = 10
_COUNTER_EXAMPLE_CHARS_MAX: Final = 256
_RANK: Final = {ERROR: 0, WARNING: 1, INFO: 2}


_NO_VARIABLES: Final[Mapping[str, Type]] = {}


def check(
    definition: Definition,
    signatures: Signatures,
    variables: Mapping[str, Type] = _NO_VARIABLES,
) -> Checked:
    """Check a definition against the versions of its nodes; changes nothing but what it fills in.

    Filled in are conversions, verdicts, and the types of inputs, outputs and parameters. Errors
    hinder storing, warnings activation. `variables` are those that the definition would read.
    """
    run = _Check(definition, signatures)
    run.bindings.variables = variables
    if len(definition.nodes) > NODES_MAX:
        run.add(ERROR, "nodes", "TOO_MANY_NODES", f"has more than {NODES_MAX} nodes")
    if len(definition.connections) > CONNECTIONS_MAX:
        run.add(
            ERROR, "connections", "TOO_MANY_CONNECTIONS", f"has more than {CONNECTIONS_MAX} edges"
        )
    if run.findings:
        return Checked(definition, tuple(run.findings))
    run.settings()
    parameters = run.bindings.declare(definition)
    run.nodes()
    run.bindings.unused(definition)
    run.edges()
    inputs = run.inputs()
    connections = run.verdicts({each.name: each.type for each in inputs if each.type is not None})
    outputs = run.outputs()
    run.missing_inputs()
    run.cycle()
    run.unreachable(outputs)
    filled = replace(
        definition,
        connections=connections,
        inputs=inputs,
        outputs=outputs,
        parameters=parameters,
    )
    types = [each.type for each in inputs] + [each.type for each in outputs]
    types += [each.type for each in parameters]
    if sum(type_size(of) for of in types if of is not None) > TYPE_PARTS_MAX:
        message = (
            f"the types of inputs, outputs and parameters have more than {TYPE_PARTS_MAX} parts"
            " in all"
        )
        hint = "declare fewer outputs, or use plainer types"
        run.add(ERROR, "outputs", "TYPES_TOO_LARGE", message, hint)
        filled = definition
    ordered = sorted(run.findings, key=lambda each: _RANK[each.severity])[:FINDINGS_MAX]
    return Checked(filled, tuple(ordered))


@dataclass(slots=True)
class _Check:
    """One check under way: the definition, its indexes, and what was found so far."""

    definition: Definition
    signatures: Signatures
    findings: list[Finding] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    # The signature at each place, in order: looked up once, since UUIDs are slow keys.
    known: list[Signature | None] = field(default_factory=list)
    # (node, input) that something feeds, with the place of what does.
    fed: dict[tuple[str, str], str] = field(default_factory=dict)
    # Edges whose ends exist and that are no copies: the graph.
    sound: list[int] = field(default_factory=list)
    judged: dict[tuple[int, int, str], tuple[Verdict, str | None]] = field(default_factory=dict)
    compared: dict[tuple[Type, Type, str], Verdict] = field(default_factory=dict)
    bindings: Bindings = field(init=False)

    def __post_init__(self) -> None:
        self.bindings = Bindings(self, _NO_VARIABLES)

    def add(self, severity: str, place: str, code: str, message: str, hint: str = "") -> None:
        self.findings.append(Finding(severity, place, code, message, hint))

    def signature_of(self, name: str) -> Signature | None:
        return self.known[self.places[name]]

    # -- settings

    def settings(self) -> None:
        """Hold every setting against the table, wherever the definition came from."""
        for setting, fault in outside(self.definition.settings()):
            self.add(ERROR, setting.name, "SETTING_OUT_OF_BOUNDS", fault)
        for index, node in enumerate(self.definition.nodes):
            for setting, fault in outside(node.settings()):
                place = f"nodes[{index}].{setting.name}"
                self.add(ERROR, place, "SETTING_OUT_OF_BOUNDS", fault)

    # -- nodes and the values written into them

    def nodes(self) -> None:
        for index, node in enumerate(self.definition.nodes):
            place = f"nodes[{index}]"
            self.known.append(self.signatures.get((node.node_id, node.version)))
            first = self.places.setdefault(node.id, index)
            if first != index:
                message = f"{node.id} is the id of nodes[{first}] already"
                self.add(ERROR, f"{place}.id", "DUPLICATE_NODE_ID", message)
            self._node(node, self.known[index], place, twin=first != index)

    def _node(
        self, node: WorkflowNode, signature: Signature | None, place: str, *, twin: bool
    ) -> None:
        if signature is None:
            code, part = ("NODE_NOT_FOUND", "node_id")
            message = f"there is no node {node.node_id}"
            if node.version:
                code, part = ("NODE_VERSION_NOT_FOUND", "version")
                message += f" with a version {node.version}"
            self.add(ERROR, f"{place}.{part}", code, f"{message} that you may read")
            return
        for name, of in signature.outputs.items():
            opaque = contains_named(of)
            if opaque is not None:
                message = f"the output {name} holds {opaque}, which cannot leave a node"
                self.add(WARNING, place, "OUTPUT_NOT_CARRIED", message, "return plain values")
        for index, (name, text) in enumerate(node.literals):
            here = f"{place}.literals[{index}]"
            spec = signature.inputs.get(name)
            if spec is None:
                self._unknown(f"{here}.input", "UNKNOWN_INPUT", node.id, name, signature.inputs)
            # A twin is no second writer of its namesake's inputs: its id is what is wrong.
            elif twin or self._feed(node.id, name, here):
                self.value(f"{here}.value_json", spec.type, text)
        self._bound(node, signature, place, twin=twin)

    def _bound(self, node: WorkflowNode, signature: Signature, place: str, *, twin: bool) -> None:
        for kind, pairs, fit in (
            ("variables", node.variables, self.bindings.variable),
            ("parameters", node.parameters, self.bindings.parameter),
        ):
            for index, (name, source) in enumerate(pairs):
                here = f"{place}.{kind}[{index}]"
                spec = signature.inputs.get(name)
                if spec is None:
                    self._unknown(f"{here}.input", "UNKNOWN_INPUT", node.id, name, signature.inputs)
                elif twin or self._feed(node.id, name, here):
                    fit(here, source, spec.type)

    def value(self, place: str, of: Type, text: str) -> None:
        try:
            fault = check_value(of, parse_strict(text))
        except ValueTextError as error:
            self.add(ERROR, place, "VALUE_INVALID", str(error))
            return
        if fault is not None:
            where = f"{fault.path}: " if fault.path else ""
            self.add(ERROR, place, "VALUE_NOT_OF_TYPE", f"{where}{fault.message}")

    def _feed(self, node: str, name: str, place: str) -> bool:
        before = self.fed.setdefault((node, name), place)
        if before != place:
            message = f"the input {name} of {node} is fed by {before} already"
            self.add(ERROR, place, "TWO_WRITERS", message, "an input has one source")
        return before == place

    def _unknown(self, place: str, code: str, node: str, name: str, known: Iterable[str]) -> None:
        kind = "input" if code == "UNKNOWN_INPUT" else "output"
        names = list(known)
        hint = f"it has {', '.join(names[:_SUGGESTED_MAX])}" if names else f"it has no {kind}s"
        self.add(ERROR, place, code, f"{node} has no {kind} {name}", hint)

    # -- edges: their ends

    def edges(self) -> None:
        seen: dict[tuple[str, str, str, str], int] = {}
        for index, edge in enumerate(self.definition.connections):
            place = f"connections[{index}]"
            first = seen.setdefault(edge.ends, index)
            if first != index:
                message = f"is the same edge as connections[{first}]"
                self.add(ERROR, place, "DUPLICATE_EDGE", message)
            elif self._ends(edge, place):
                self.sound.append(index)

    def _ends(self, edge: Connection, place: str) -> bool:
        sound = True
        for part, name in (("source_node", edge.source), ("target_node", edge.target)):
            if name not in self.places and (name or part == "target_node"):
                message = f"there is no node {name} in this workflow"
                self.add(ERROR, f"{place}.{part}", "UNKNOWN_NODE", message)
                sound = False
        if sound and edge.source == edge.target:
            message = f"{edge.source} feeds itself"
            self.add(
                ERROR, place, "SELF_EDGE", message, "a node runs once, when its inputs are there"
            )
            return False
        return sound and self._ports(edge, place)

    def _ports(self, edge: Connection, place: str) -> bool:
        sound = True
        source = self.signature_of(edge.source) if edge.source else None
        target = self.signature_of(edge.target)
        if source is not None and edge.source_output not in source.outputs:
            self._unknown(
                f"{place}.source_output",
                "UNKNOWN_OUTPUT",
                edge.source,
                edge.source_output,
                source.outputs,
            )
            sound = False
        if target is not None and edge.target_input not in target.inputs:
            self._unknown(
                f"{place}.target_input",
                "UNKNOWN_INPUT",
                edge.target,
                edge.target_input,
                target.inputs,
            )
            sound = False
        return self._feed(edge.target, edge.target_input, place) and sound

    # -- the workflow's own inputs

    def inputs(self) -> tuple[WorkflowInput, ...]:
        """Check the declared inputs, or declare what the edges take; fill in types."""
        fed: dict[str, list[InputSpec]] = {}
        declared = {each.name for each in self.definition.inputs}
        for index in self.sound:
            edge = self.definition.connections[index]
            if edge.source:
                continue
            if declared and edge.source_output not in declared:
                message = f"the workflow declares no input {edge.source_output}"
                hint = "declare it in inputs, or declare none to have all inferred"
                place = f"connections[{index}].source_output"
                self.add(ERROR, place, "UNKNOWN_INPUT", message, hint)
                continue
            target = self.signature_of(edge.target)
            spec = target.inputs.get(edge.target_input) if target is not None else None
            if spec is not None and not edge.conversion:
                fed.setdefault(edge.source_output, []).append(spec)
            else:
                fed.setdefault(edge.source_output, [])
        if not self.definition.inputs:
            return tuple(self._inferred(name, specs) for name, specs in fed.items())
        return self._declared(fed)

    def _inferred(self, name: str, specs: Sequence[InputSpec]) -> WorkflowInput:
        # A default is taken over where all agree on it; else a starter has to decide.
        defaults = {spec.default_json for spec in specs if not spec.required}
        agreed = len(defaults) == 1 and not any(spec.required for spec in specs)
        default = defaults.pop() if agreed else None
        return WorkflowInput(name=name, type=self._narrowest(name, specs), default_json=default)

    def _narrowest(self, name: str, specs: Sequence[InputSpec], place: str = "inputs") -> Type:
        """Choose the type that fits all that an input feeds, as it stands or by conversion."""
        types = list(dict.fromkeys(spec.type for spec in specs))
        if len(types) > _TYPES_PER_INPUT_MAX:
            message = f"the input {name} feeds inputs of {len(types)} different types"
            hint = f"declare its type, or feed at most {_TYPES_PER_INPUT_MAX} by one input"
            self.add(ERROR, place, "TOO_MANY_TYPES", message, hint)
            return ANY
        for fits in (widens, _converts):
            for candidate in types:
                if all(fits(candidate, other) for other in types):
                    return candidate
        if types:
            shown = ", ".join(expression(each) for each in types[:_SUGGESTED_MAX])
            message = f"the input {name} feeds inputs of types that no one type fits: {shown}"
            self.add(ERROR, place, "INPUT_TYPES_CONFLICT", message, "feed them by two inputs")
        return ANY

    def _declared(self, fed: dict[str, list[InputSpec]]) -> tuple[WorkflowInput, ...]:
        filled = []
        seen: dict[str, int] = {}
        for index, each in enumerate(self.definition.inputs):
            place = f"inputs[{index}]"
            first = seen.setdefault(each.name, index)
            if first != index:
                message = f"{each.name} is declared by inputs[{first}] already"
                self.add(ERROR, f"{place}.name", "DUPLICATE_INPUT", message)
            declared = self._declared_type(each, f"{place}.type_json")
            if each.name not in fed:
                self.add(INFO, place, "INPUT_UNUSED", f"the input {each.name} feeds nothing")
            of = declared or self._narrowest(each.name, fed.get(each.name, ()), place)
            if each.default_json is not None:
                self.value(f"{place}.default_json", of, each.default_json)
            filled.append(replace(each, type=of, type_text=""))
        return tuple(filled)

    def _declared_type(self, each: WorkflowInput, place: str) -> Type | None:
        if not each.type_text:
            return each.type
        try:
            return from_text(each.type_text)
        except TypeFormatError as error:
            self.add(ERROR, place, "TYPE_INVALID", str(error))
            return None

    # -- edges: their types

    def verdicts(self, inputs: dict[str, Type]) -> tuple[Connection, ...]:
        connections = list(self.definition.connections)
        for index in self.sound:
            edge = connections[index]
            source = self._source_type(edge, inputs)
            target = self.signature_of(edge.target)
            spec = target.inputs.get(edge.target_input) if target is not None else None
            if source is not None and spec is not None:
                connections[index] = self._typed(edge, index, source, spec.type)
        return tuple(connections)

    def _source_type(self, edge: Connection, inputs: dict[str, Type]) -> Type | None:
        if not edge.source:
            return inputs.get(edge.source_output)
        signature = self.signature_of(edge.source)
        return signature.outputs.get(edge.source_output) if signature is not None else None

    def _typed(self, edge: Connection, index: int, source: Type, target: Type) -> Connection:
        place = f"connections[{index}]"
        said, opaque = self._judged(source, target, edge.conversion)
        if opaque is not None:
            message = f"values of {opaque} are not carried between nodes"
            hint = "pass plain values or records, or join the two nodes into one"
            self.add(ERROR, place, "TYPE_NOT_CARRIED", message, hint)
            return replace(edge, verdict=VerdictKind.REFUTED.value)
        if not said.fits and edge.conversion in LOSSLESS:
            # Inserted when the nodes had other types: chosen anew as if it did not stand there.
            said, _ = self._judged(source, target, "")
        if not said.fits:
            message = said.reason
            if said.counter_example is not None:
                message += f" (for example {said.counter_example[:200]})"
            example = _shown_whole(said.counter_example)
            self.findings.append(
                Finding(
                    ERROR,
                    place,
                    "TYPE_REFUTED",
                    message,
                    "",
                    example,
                    said.mended_by,
                )
            )
        elif not said.lossless:
            message = f"{said.method} may lose something or fail at run time"
            self.add(INFO, place, "CONVERSION_LOSSY", message)
        return Connection(
            source=edge.source,
            source_output=edge.source_output,
            target=edge.target,
            target_input=edge.target_input,
            conversion=said.method,
            verdict=said.kind.value,
            counter_example=_shown_whole(said.counter_example),
        )

    def _judged(self, source: Type, target: Type, conversion: str) -> tuple[Verdict, str | None]:
        """Compare two types once, by which they are: to hash a large one costs what it holds.

        Gives what cannot be carried besides. The types live as long as the signatures do.
        """
        key = (id(source), id(target), conversion)
        known = self.judged.get(key)
        if known is None:
            said = self.judge(source, target, conversion)
            opaque = None
            if said.kind is not VerdictKind.CONVERSION:
                opaque = contains_named(source) or contains_named(target)
            known = self.judged[key] = (said, opaque)
        return known

    def judge(self, source: Type, target: Type, conversion: str) -> Verdict:
        key = (source, target, conversion)
        said = self.compared.get(key)
        if said is None:
            said = self.compared[key] = verdict(source, target, conversion)
        return said

    # -- the workflow's outputs

    def outputs(self) -> tuple[WorkflowOutput, ...]:
        """Check the declared outputs, or declare those of every node that feeds no other."""
        if not self.definition.outputs:
            return self._sinks()
        seen: dict[str, int] = {}
        filled = []
        for index, each in enumerate(self.definition.outputs):
            place = f"outputs[{index}]"
            first = seen.setdefault(each.name, index)
            if first != index:
                message = f"{each.name} is the name of outputs[{first}] already"
                self.add(ERROR, f"{place}.name", "DUPLICATE_OUTPUT", message)
            filled.append(replace(each, type=self._output_type(each, place)))
        return tuple(filled)

    def _output_type(self, output: WorkflowOutput, place: str) -> Type | None:
        if output.node not in self.places:
            message = f"there is no node {output.node} in this workflow"
            self.add(ERROR, f"{place}.source_node", "UNKNOWN_NODE", message)
            return None
        signature = self.signature_of(output.node)
        if signature is None:
            return None
        of = signature.outputs.get(output.output)
        if of is None:
            where = f"{place}.source_output"
            self._unknown(where, "UNKNOWN_OUTPUT", output.node, output.output, signature.outputs)
        return of

    def _sinks(self) -> tuple[WorkflowOutput, ...]:
        sources = {self.definition.connections[index].source for index in self.sound}
        found = []
        for node, signature in zip(self.definition.nodes, self.known, strict=True):
            if node.id in sources or signature is None:
                continue
            single = len(signature.outputs) == 1
            for name, of in signature.outputs.items():
                shown = node.id if single else f"{node.id}.{name}"
                found.append(WorkflowOutput(name=shown, node=node.id, output=name, type=of))
        return tuple(found)

    # -- what hinders a run

    def missing_inputs(self) -> None:
        for index, node in enumerate(self.definition.nodes):
            signature = self.known[index]
            if signature is None:
                continue
            missing = [
                name
                for name, spec in signature.inputs.items()
                if spec.required and (node.id, name) not in self.fed
            ]
            for name in missing:
                message = f"nothing feeds the required input {name} of {node.id}"
                hint = "add a connection or a literal"
                self.add(WARNING, f"nodes[{index}]", "INPUT_MISSING", message, hint)

    def cycle(self) -> None:
        """Remove nodes without parents until none is left; what remains holds a cycle."""
        children, parents = self._adjacency()
        ready = deque(name for name in self.places if not parents[name])
        left = dict.fromkeys(self.places)
        while ready:
            name = ready.popleft()
            del left[name]
            for child in children.get(name, ()):
                parents[child] -= 1
                if not parents[child]:
                    ready.append(child)
        if left:
            self._name_cycle(left)

    def _adjacency(self) -> tuple[dict[str, list[str]], Counter[str]]:
        children: dict[str, list[str]] = {}
        parents: Counter[str] = Counter()
        for index in self.sound:
            edge = self.definition.connections[index]
            if edge.source:
                children.setdefault(edge.source, []).append(edge.target)
                parents[edge.target] += 1
        return children, parents

    def _name_cycle(self, left: dict[str, None]) -> None:
        """Walk backwards among what is left until a node comes again."""
        backwards: dict[str, tuple[str, int]] = {}
        for index in self.sound:
            edge = self.definition.connections[index]
            if edge.source in left and edge.target in left:
                backwards.setdefault(edge.target, (edge.source, index))
        # What is left may also hang behind a cycle; each of it has a parent that is left.
        name = next(iter(left))
        seen: dict[str, int] = {}
        path: list[str] = []
        while name not in seen:
            seen[name] = len(path)
            path.append(name)
            name = backwards[name][0]
        loop = path[seen[name] :][::-1]
        start = loop.index(min(loop, key=self.places.__getitem__))
        loop = loop[start:] + loop[:start]
        shown = loop if len(loop) <= _CYCLE_SHOWN_MAX else [*loop[:_CYCLE_SHOWN_MAX], "…"]
        message = f"the nodes wait for each other: {' → '.join([*shown, loop[0]])}"
        place = f"connections[{backwards[loop[0]][1]}]"
        self.add(ERROR, place, "CYCLE", message, "remove one of these edges")

    def unreachable(self, outputs: Sequence[WorkflowOutput]) -> None:
        """Warn of nodes whose work no output of the workflow shows."""
        backwards: dict[str, list[str]] = {}
        for index in self.sound:
            edge = self.definition.connections[index]
            backwards.setdefault(edge.target, []).append(edge.source)
        reached = {each.node for each in outputs}
        queue = deque(reached)
        while queue:
            for parent in backwards.get(queue.popleft(), ()):
                if parent and parent not in reached:
                    reached.add(parent)
                    queue.append(parent)
        for index, node in enumerate(self.definition.nodes):
            if node.id not in reached and self.known[index] is not None:
                message = f"{node.id} reaches no output of the workflow"
                hint = "connect it, declare an output of it, or remove it"
                self.add(WARNING, f"nodes[{index}]", "NODE_UNREACHABLE", message, hint)


def _shown_whole(counter_example: str | None) -> str:
    """Give a value that fits an answer; part of a JSON text would be none."""
    if counter_example is None or len(counter_example) > _COUNTER_EXAMPLE_CHARS_MAX:
        return ""
    return counter_example


def _converts(source: Type, target: Type) -> bool:
    """Whether the source fits as it stands or by a lossless conversion: no reasons, no examples."""
    made = (rule(source) for rule in LOSSLESS.values())
    return widens(source, target) or any(each and widens(each, target) for each in made)
