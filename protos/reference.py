"""Write the reference of the contract, in Markdown, from the comments of the protos.

`python protos/reference.py FOLDER` writes one page per package and an index: each service with its
RPCs, who may call them and which a client may repeat; each message and enum with its fields. Every
element has a comment (lint sees to that), so nothing stands here that is not explained.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    MethodOptions,
    ServiceDescriptorProto,
)

PROTOS: Final = Path(__file__).resolve().parent
# The rule of an RPC is an option of the contract's own, so its stubs are needed to read it.
sys.path.insert(0, str(PROTOS.parent / "clients" / "python"))

from qflow.auth.v1 import auth_pb2  # noqa: E402

# Field numbers of descriptor.proto, by which comments are found.
_MESSAGES, _ENUMS, _SERVICES = 4, 5, 6
_FIELDS, _NESTED_MESSAGES, _NESTED_ENUMS, _VALUES, _METHODS = 2, 3, 4, 2, 2
_SCALARS: Final = {
    number: name.removeprefix("TYPE_").lower() for name, number in FieldDescriptorProto.Type.items()
}


@dataclass(frozen=True, slots=True)
class Source:
    """A file of the contract, with its comments by path."""

    file: FileDescriptorProto
    comments: dict[tuple[int, ...], str]

    @classmethod
    def of(cls, file: FileDescriptorProto) -> Source:
        """Take the comments that stand before what they explain."""
        return cls(
            file,
            {
                tuple(place.path): place.leading_comments.strip()
                for place in file.source_code_info.location
            },
        )

    def comment(self, *path: int) -> str:
        """Give the comment of an element, as it stands in the proto."""
        text = self.comments.get(path, "")
        return "\n".join(line.removeprefix(" ") for line in text.splitlines())

    def line(self, *path: int) -> str:
        """Give the comment as one line, for a cell of a table."""
        return self.comment(*path).replace("\n", " ").replace("|", "\\|")


def main() -> int:
    """Write the pages into the folder that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    packages: dict[str, list[Source]] = {}
    for file in contract().file:
        if file.package.startswith("qflow."):
            packages.setdefault(file.package, []).append(Source.of(file))
    index = ["# The contract", ""]
    for package, sources in sorted(packages.items()):
        sources.sort(key=lambda source: (not source.file.service, source.file.name))
        (folder / f"{package}.md").write_text("\n".join(page(package, sources)), encoding="utf-8")
        services = [each.name for source in sources for each in source.file.service]
        index.append(f"- [{package}]({package}.md)" + (": " if services else ""))
        index[-1] += ", ".join(f"[{name}]({package}.md#{name.lower()})" for name in services)
    (folder / "index.md").write_text("\n".join([*index, ""]), encoding="utf-8")
    sys.stdout.write(f"{len(packages)} packages in {folder}\n")
    return 0


def contract() -> FileDescriptorSet:
    """Compile the protos, with their comments."""
    buf = Path(sys.executable).parent / "buf"
    built = subprocess.run([buf, "build", PROTOS, "-o", "-"], check=True, stdout=subprocess.PIPE)
    return FileDescriptorSet.FromString(built.stdout)


def page(package: str, sources: Sequence[Source]) -> Iterator[str]:
    """Give the lines of a package's page: services first, then messages, then enums."""
    yield f"# {package}"
    yield ""
    for source in sources:
        for at, service in enumerate(source.file.service):
            yield from _service(source, service, at)
    for source in sources:
        for at, message in enumerate(source.file.message_type):
            yield from _message(source, message, (_MESSAGES, at), "")
    for source in sources:
        for at, enum in enumerate(source.file.enum_type):
            yield from _enum(source, enum, (_ENUMS, at), "")


def _service(source: Source, service: ServiceDescriptorProto, at: int) -> Iterator[str]:
    yield from (f"## {service.name}", "", source.comment(_SERVICES, at), "")
    for number, method in enumerate(service.method):
        request, answer = _link(method.input_type), _link(method.output_type)
        taken = f"stream of {request}" if method.client_streaming else request
        given = f"stream of {answer}" if method.server_streaming else answer
        yield from (f"### {method.name}", "", f"{taken} → {given}", "")
        yield from (source.comment(_SERVICES, at, _METHODS, number), "", _who(method), "")


def _who(method: MethodDescriptorProto) -> str:
    """Say who may call it, and whether it may be repeated."""
    rule = method.options.Extensions[auth_pb2.rule]
    said = []
    if auth_pb2.AUDIENCE_ANONYMOUS in rule.audiences:
        said.append("anybody, without a token")
    if rule.roles:
        said.append(", ".join(auth_pb2.Role.Name(each)[5:].lower() for each in rule.roles))
    if auth_pb2.AUDIENCE_SERVICE in rule.audiences:
        said.append("services")
    scope = f", with the scope `{rule.scope}`" if rule.scope else ""
    repeated = method.options.idempotency_level == MethodOptions.NO_SIDE_EFFECTS
    return f"For {'; '.join(said)}{scope}." + (" Changes nothing." if repeated else "")


def _message(
    source: Source, message: DescriptorProto, path: tuple[int, ...], outer: str
) -> Iterator[str]:
    if message.options.map_entry:
        return
    name = f"{outer}{message.name}"
    yield from (f"## {name}", "", source.comment(*path), "")
    if message.field:
        yield from ("| Field | Type | |", "|---|---|---|")
    maps = {each.name: each for each in message.nested_type if each.options.map_entry}
    for number, field in enumerate(message.field):
        told = source.line(*path, _FIELDS, number)
        yield f"| `{field.name}` | {_type(field, maps)} | {told} |"
    yield ""
    for number, nested in enumerate(message.nested_type):
        yield from _message(source, nested, (*path, _NESTED_MESSAGES, number), f"{name}.")
    for number, enum in enumerate(message.enum_type):
        yield from _enum(source, enum, (*path, _NESTED_ENUMS, number), f"{name}.")


def _enum(
    source: Source, enum: EnumDescriptorProto, path: tuple[int, ...], outer: str
) -> Iterator[str]:
    yield from (f"## {outer}{enum.name}", "", source.comment(*path), "")
    yield from ("| Value | |", "|---|---|")
    for number, value in enumerate(enum.value):
        yield f"| `{value.name}` = {value.number} | {source.line(*path, _VALUES, number)} |"
    yield ""


def _type(field: FieldDescriptorProto, maps: dict[str, DescriptorProto]) -> str:
    entry = maps.get(field.type_name.rpartition(".")[2])
    if entry is not None:
        key, value = (_type(each, {}) for each in entry.field)
        return f"map of {key} to {value}"
    named = _link(field.type_name) if field.type_name else _SCALARS[field.type]
    repeated = field.label == FieldDescriptorProto.LABEL_REPEATED
    return f"list of {named}" if repeated else named


def _link(full_name: str) -> str:
    """Link a type of the contract to where it stands; others are named."""
    package, _, name = full_name.removeprefix(".").rpartition(".")
    return f"[{name}]({package}.md#{name.lower()})" if package.startswith("qflow.") else name


if __name__ == "__main__":
    sys.exit(main())
