"""Every moment and every span that callers give is one, wherever the contract has it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any, Final

import pytest
from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.errors import InvalidArgument
from services.kit.rpc import times, validate

_SPAN_S_MAX: Final = 315_576_000_000
_WRONG: Final[dict[Any, list[Any]]] = {
    Timestamp: [
        Timestamp(nanos=-1),
        Timestamp(seconds=5, nanos=10**9),
        Timestamp(seconds=253_402_300_800),
        Timestamp(seconds=-62_135_596_801),
    ],
    Duration: [
        Duration(seconds=1, nanos=10**9),
        Duration(nanos=-(10**9)),
        Duration(seconds=1, nanos=-1),
        Duration(seconds=-1, nanos=1),
        Duration(seconds=_SPAN_S_MAX + 1),
    ],
}
# Checked point by point: what is wrong with one hinders no other.
_BY_ITEM: Final = {"series[0].points[0].record_time"}


def _requests(contract: list[FileDescriptorProto]) -> Iterator[Descriptor]:
    for file in contract:
        if file.service:
            name = file.name.removesuffix(".proto").replace("/", ".")
            module = importlib.import_module(f"{name}_pb2")
            for service in module.DESCRIPTOR.services_by_name.values():
                yield from (method.input_type for method in service.methods)


def _paths(
    descriptor: Descriptor, above: tuple[FieldDescriptor, ...] = ()
) -> Iterator[tuple[FieldDescriptor, ...]]:
    """Give the ways to every time in a message; a message within itself is looked into once."""
    for field in descriptor.fields:
        inner = field.message_type
        if inner is None or any(each.message_type is inner for each in above):
            continue
        if inner.full_name in times.NAMES:
            yield (*above, field)
        else:
            yield from _paths(inner, (*above, field))


def _with(descriptor: Descriptor, path: tuple[FieldDescriptor, ...], wrong: Any) -> tuple[Any, str]:
    """Make a message that has a time at the end of a way; also how that place is called."""
    whole = at = GetMessageClass(descriptor)()
    name = ""
    for field in path:
        name += f".{field.name}" if name else field.name
        at = getattr(at, field.name)
        if field.is_repeated:
            entry = field.message_type
            assert entry is not None
            assert not entry.GetOptions().map_entry, "no times in maps as yet"
            at = at.add()
            name += "[0]"
    at.CopyFrom(wrong)
    return whole, name


def _is_by_item(path: tuple[FieldDescriptor, ...]) -> bool:
    rules = (each.GetOptions().Extensions[validate_pb2.field] for each in path)
    return any(each.repeated.items.ignore == validate_pb2.IGNORE_ALWAYS for each in rules)


def test_what_is_no_moment_and_no_span_is_refused_with_its_place(
    contract: list[FileDescriptorProto],
) -> None:
    seen: set[str] = set()
    by_item: set[str] = set()
    for request in _requests(contract):
        for path in _paths(request):
            kind = Timestamp if path[-1].message_type is Timestamp.DESCRIPTOR else Duration
            for wrong in _WRONG[kind]:
                message, place = _with(request, path, wrong)
                if _is_by_item(path):
                    by_item.add(place)
                    continue
                with pytest.raises(InvalidArgument) as refused:
                    validate.check_item(message)
                found = {each.field for each in refused.value.fields}
                assert place in found, (request.full_name, place, wrong)
                seen.add(f"{request.full_name} {place}")
    assert by_item >= _BY_ITEM
    assert "qflow.orchestrator.v1.StartExecutionRequest timeout" in seen
    assert len(seen) > 60


@pytest.mark.parametrize(
    "right",
    [
        Timestamp(seconds=-62_135_596_800),
        Timestamp(seconds=253_402_300_799, nanos=999_999_999),
        Duration(seconds=-1, nanos=-999_999_999),
        Duration(nanos=-1),
        Duration(seconds=_SPAN_S_MAX, nanos=999_999_999),
    ],
)
def test_what_is_one_is_taken(right: Timestamp | Duration) -> None:
    assert times.is_right(right)
