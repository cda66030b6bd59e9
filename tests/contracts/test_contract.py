"""The contract keeps its own rules: names, rules of access, shapes, comments, compatibility."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from buf.validate import validate_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    MethodDescriptorProto,
    SourceCodeInfo,
)
from qflow.auth.v1 import auth_pb2

from tests.contracts.conftest import PROTOS, ROOT
from tests.contracts.names import FIELDS_ESCAPED, METHODS_TAKEN, TYPES_TAKEN, clashes

BUF = Path(sys.executable).with_name("buf")
ANONYMOUS = {
    "qflow.orchestrator.v1.TriggerService.FireTrigger",
    "qflow.registry.v1.SessionService.SignIn",
    "qflow.registry.v1.UserService.AcceptInvitation",
    "qflow.registry.v1.UserService.ResetPassword",
}
_RESOURCE_ID = r"(node|workflow|execution|file|user|session|service_token)_id"
# What is about the caller's own account: a viewer changes that too.
_OWN_ACCOUNT = ("sessions:", "account:")


def test_no_name_is_a_keyword_of_a_language_that_has_stubs(
    contract: list[FileDescriptorProto],
) -> None:
    found = [
        f"{file.name}: {name} ({', '.join(sorted(languages))})"
        for file in contract
        for name, languages in _clashing(file)
    ]
    assert [] == found


def test_a_caller_cannot_state_types_that_differ_from_the_source(
    contract: list[FileDescriptorProto],
) -> None:
    """B36: no request has a place for them; types are read from the source alone."""
    requests = {
        message.name: {field.name for field in message.field}
        for file in contract
        for message in _messages(file)
        if message.name in {"CreateNodeRequest", "UpdateNodeRequest"}
    }
    assert set(requests) == {"CreateNodeRequest", "UpdateNodeRequest"}
    for name, fields in requests.items():
        assert "code" in fields, name
        assert not {field for field in fields if "type" in field or "put" in field}, name


def _clashing(file: FileDescriptorProto) -> Iterator[tuple[str, set[str]]]:
    for part in file.package.split("."):
        yield from _named(part, clashes(part))
    for enum in _enums(file):
        yield from _named(enum.name, clashes(enum.name))
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"
        for value in enum.value:
            # Some generators strip the prefix that repeats the enum's name.
            yield from _named(value.name, clashes(value.name))
            yield from _named(value.name, _stripped(value.name, prefix))
    for message in _messages(file):
        taken = {"imports"} if message.name.lower() in TYPES_TAKEN else set()
        yield from _named(message.name, clashes(message.name) | taken)
        for field in message.field:
            if field.name not in FIELDS_ESCAPED:
                yield from _named(f"{message.name}.{field.name}", clashes(field.name))
        for oneof in message.oneof_decl:
            yield from _named(f"{message.name}.{oneof.name}", clashes(oneof.name))
    for service in file.service:
        for method in service.method:
            taken = {"clients"} if method.name.lower() in METHODS_TAKEN else set()
            yield from _named(f"{service.name}.{method.name}", clashes(method.name) | taken)


def _stripped(name: str, prefix: str) -> set[str]:
    # In CamelCase (Rust) only `Self` would clash; elsewhere the prefix stays.
    return {"Rust"} if name.removeprefix(prefix) == "SELF" else set()


def _named(name: str, languages: set[str]) -> Iterator[tuple[str, set[str]]]:
    if languages:
        yield name, languages


def test_the_list_of_keywords_is_not_empty_where_it_matters() -> None:
    for name in ("from", "import", "class", "descriptor", "errno", "lambda", "func", "crate"):
        assert clashes(name), name
    assert not clashes("node_id")


def test_every_rpc_says_who_may_call_it(contract: list[FileDescriptorProto]) -> None:
    anonymous = set()
    for name, method in _methods(contract):
        assert method.options.HasExtension(auth_pb2.rule), name
        rule = method.options.Extensions[auth_pb2.rule]
        audiences = {*rule.audiences}
        assert audiences, name
        assert auth_pb2.AUDIENCE_UNSPECIFIED not in audiences, name
        assert (auth_pb2.AUDIENCE_USER in audiences) == bool(rule.roles), name
        if auth_pb2.AUDIENCE_ANONYMOUS in audiences:
            anonymous.add(name)
            assert auth_pb2.AuthRule(audiences=[auth_pb2.AUDIENCE_ANONYMOUS]) == rule, name
        elif auth_pb2.AUDIENCE_USER in audiences:
            assert re.fullmatch(r"[a-z_]+:(read|write)", rule.scope), name
        else:
            assert re.fullmatch(r"[a-z]+", rule.scope), name
    assert anonymous == ANONYMOUS


def test_a_viewer_is_admitted_to_reads_alone(contract: list[FileDescriptorProto]) -> None:
    """X17."""
    for name, method in _methods(contract):
        rule = method.options.Extensions[auth_pb2.rule]
        if auth_pb2.AUDIENCE_USER in rule.audiences and not rule.scope.startswith(_OWN_ACCOUNT):
            is_read = method.options.idempotency_level == method.options.NO_SIDE_EFFECTS
            assert is_read == rule.scope.endswith(":read"), name
            if auth_pb2.ROLE_VIEWER in rule.roles:
                assert is_read, name


def test_every_resource_of_a_rule_is_a_field_of_the_request(
    contract: list[FileDescriptorProto],
) -> None:
    messages = {
        f".{file.package}.{message.name}": message
        for file in contract
        for message in file.message_type
    }
    for name, method in _methods(contract):
        rule = method.options.Extensions[auth_pb2.rule]
        if not rule.resources:
            # A list that names no resource answers foreign rows by leaving them out.
            answers = {auth_pb2.FOREIGN_ANSWER_UNSPECIFIED, auth_pb2.FOREIGN_ANSWER_EMPTY}
            assert rule.foreign_answer in answers, name
        for resource in rule.resources:
            assert resource.foreign_answer or rule.foreign_answer, name
            assert re.fullmatch(r"[a-z_]+", resource.kind), name
            message = messages[method.input_type]
            for part in resource.field.split("."):
                [field] = [field for field in message.field if field.name == part]
                message = messages.get(field.type_name, message)
            assert field.type == FieldDescriptorProto.TYPE_STRING, name


def test_every_id_of_another_resource_in_a_request_has_its_rule(
    contract: list[FileDescriptorProto],
) -> None:
    """X14: whoever adds a field that names something says what a stranger is told."""
    messages = {
        f".{file.package}.{message.name}": message
        for file in contract
        for message in file.message_type
    }
    for name, method in _methods(contract):
        rule = method.options.Extensions[auth_pb2.rule]
        if auth_pb2.AUDIENCE_USER not in rule.audiences:
            continue
        stated = {resource.field for resource in rule.resources}
        named = {
            path
            for path, field in _fields(messages, method.input_type)
            if re.fullmatch(
                r".*(node|workflow|execution|file|tag|template|user|owner|session|service_token"
                r"|custom_type|schedule|backfill|subscription|delivery|trigger|upload"
                r"|environment|wheel|team|invitation|target_tenant)_ids?",
                field.name,
            )
        }
        assert named == stated, name


def test_every_list_of_a_request_has_a_limit(contract: list[FileDescriptorProto]) -> None:
    """Also within what it holds."""
    messages = {
        f".{file.package}.{message.name}": message
        for file in contract
        for message in file.message_type
    }
    unlimited = [
        f"{name}: {path}"
        for name, method in _methods(contract)
        for path, field in _fields(messages, method.input_type)
        if field.label == field.LABEL_REPEATED
        and not field.options.Extensions[validate_pb2.field].repeated.max_items
        and not field.options.Extensions[validate_pb2.field].map.max_pairs
    ]
    assert [] == unlimited


def _fields(
    messages: dict[str, DescriptorProto], type_name: str, place: str = ""
) -> Iterator[tuple[str, FieldDescriptorProto]]:
    """Every field that a message reaches, with its path."""
    for field in messages[type_name].field:
        yield f"{place}{field.name}", field
        if field.type_name in messages:
            yield from _fields(messages, field.type_name, f"{place}{field.name}.")


def test_every_rpc_has_a_request_and_a_response_of_its_own(
    contract: list[FileDescriptorProto],
) -> None:
    used = []
    for name, method in _methods(contract):
        package = name.rsplit(".", 2)[0]
        assert f".{package}.{method.name}Request" == method.input_type
        assert f".{package}.{method.name}Response" == method.output_type
        used += [method.input_type, method.output_type]
    assert len(set(used)) == len(used)


def test_every_element_has_a_comment(contract: list[FileDescriptorProto]) -> None:
    bare = []
    for file in contract:
        comments = {tuple(each.path): each for each in file.source_code_info.location}
        bare += [
            f"{file.name}: {name}"
            for path, name in _elements(file)
            if not _comment(comments.get(path))
        ]
    assert [] == bare


def _comment(location: SourceCodeInfo.Location | None) -> str:
    return "" if location is None else (location.leading_comments or location.trailing_comments)


def _elements(file: FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    yield (2,), "package"
    for i, message in enumerate(file.message_type):
        yield from _message_elements((4, i), message)
    for i, enum in enumerate(file.enum_type):
        yield from _enum_elements((5, i), enum)
    for i, service in enumerate(file.service):
        yield (6, i), service.name
        for j, method in enumerate(service.method):
            yield (6, i, 2, j), f"{service.name}.{method.name}"


def _message_elements(
    path: tuple[int, ...], message: DescriptorProto
) -> Iterator[tuple[tuple[int, ...], str]]:
    if message.options.map_entry:
        return
    yield path, message.name
    for i, field in enumerate(message.field):
        yield (*path, 2, i), f"{message.name}.{field.name}"
    for i, nested in enumerate(message.nested_type):
        yield from _message_elements((*path, 3, i), nested)
    for i, enum in enumerate(message.enum_type):
        yield from _enum_elements((*path, 4, i), enum)
    synthetic = {field.oneof_index for field in message.field if field.proto3_optional}
    for i, oneof in enumerate(message.oneof_decl):
        if i not in synthetic:
            yield (*path, 8, i), f"{message.name}.{oneof.name}"


def _enum_elements(
    path: tuple[int, ...], enum: EnumDescriptorProto
) -> Iterator[tuple[tuple[int, ...], str]]:
    yield path, enum.name
    for i, value in enumerate(enum.value):
        yield (*path, 2, i), value.name


def test_user_values_never_travel_as_struct_or_any(contract: list[FileDescriptorProto]) -> None:
    for file in contract:
        for message in _messages(file):
            for field in message.field:
                assert field.type_name not in {
                    ".google.protobuf.Struct",
                    ".google.protobuf.Value",
                    ".google.protobuf.Any",
                    ".google.protobuf.Empty",
                }, f"{message.name}.{field.name}"


def test_the_stubs_are_what_the_protos_give() -> None:
    outcome = _run([sys.executable, "protos/generate.py", "--check"], cwd=ROOT)
    assert 0 == outcome.returncode, outcome.stderr


def test_buf_finds_nothing_to_lint() -> None:
    outcome = _run([str(BUF), "lint"], cwd=PROTOS)
    assert 0 == outcome.returncode, outcome.stdout + outcome.stderr


def test_the_contract_breaks_no_client_of_the_committed_one(tmp_path: Path) -> None:
    outcome = _breaking(PROTOS, tmp_path)
    assert 0 == outcome.returncode, outcome.stdout + outcome.stderr


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "string metric_unit = 4",
            "string metric_unit = 44",
        ),
        (
            "double metric_value = 3",
            "string metric_value = 3",
        ),
        ("rpc ListErrors(", "rpc ListFaults("),
        ("string metric_name = 2;", "string name = 2;"),
    ],
    ids=["number", "type", "rpc", "json name"],
)
def test_a_change_that_would_break_clients_is_seen(tmp_path: Path, before: str, after: str) -> None:
    copy = tmp_path / "protos"
    shutil.copytree(PROTOS, copy)
    proto = copy / "qflow/telemetry/v1/telemetry_service.proto"
    text = proto.read_text(encoding="utf-8")
    assert before in text
    proto.write_text(text.replace(before, after), encoding="utf-8")
    assert 0 != _breaking(copy, tmp_path).returncode


def _breaking(protos: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Compare image with image: buf cannot compare a workspace of two modules with one."""
    image = folder / "now.binpb"
    built = _run([str(BUF), "build", str(protos), "-o", str(image)], cwd=folder)
    assert 0 == built.returncode, built.stderr
    against = ["--config", str(PROTOS / "buf.yaml"), "--against", str(PROTOS / "image.binpb")]
    return _run([str(BUF), "breaking", str(image), *against], cwd=folder)


def _run(command: list[str], *, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True)


def _methods(
    contract: list[FileDescriptorProto],
) -> Iterator[tuple[str, MethodDescriptorProto]]:
    for file in contract:
        for service in file.service:
            for method in service.method:
                yield f"{file.package}.{service.name}.{method.name}", method


def _messages(file: FileDescriptorProto) -> Iterator[DescriptorProto]:
    waiting = [*file.message_type]
    while waiting:
        message = waiting.pop()
        if not message.options.map_entry:
            yield message
            waiting += message.nested_type


def _enums(file: FileDescriptorProto) -> Iterator[EnumDescriptorProto]:
    yield from file.enum_type
    for message in _messages(file):
        yield from message.enum_type
