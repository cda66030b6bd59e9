"""The contract as a later version might have it: every message has one field more."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

import qflow
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

ADDED = "added_in_the_next_version"
_NUMBER = 50_000


def services() -> list[ServiceDescriptor]:
    """Every service of the contract, by full name."""
    found = {
        service.full_name: service
        for file in _files()
        for service in file.services_by_name.values()
    }
    return [found[name] for name in sorted(found)]


def methods() -> list[MethodDescriptor]:
    """Every RPC of the contract."""
    return [method for service in services() for method in service.methods]


def next_class(full_name: str) -> type[Message]:
    """Give the next version's class of a message."""
    return message_factory.GetMessageClass(_next_pool().FindMessageTypeByName(full_name))


@cache
def _files() -> tuple[FileDescriptor, ...]:
    files: dict[str, FileDescriptor] = {}
    for module in pkgutil.walk_packages(qflow.__path__, "qflow."):
        if module.name.endswith("_pb2"):
            descriptor = importlib.import_module(module.name).DESCRIPTOR
            files[descriptor.name] = descriptor
    return tuple(files[name] for name in sorted(files))


@cache
def _next_pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    done: set[str] = set()

    def add(file: FileDescriptor) -> None:
        if file.name in done:
            return
        done.add(file.name)
        for dependency in file.dependencies:
            add(dependency)
        proto = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(proto)
        if file.package.startswith("qflow."):
            for message in proto.message_type:
                _grow(message)
        pool.AddSerializedFile(proto.SerializeToString())

    for file in _files():
        add(file)
    return pool


def _grow(message: descriptor_pb2.DescriptorProto) -> None:
    if message.options.map_entry:
        return
    message.field.add(
        name=ADDED,
        number=_NUMBER,
        label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
        type=descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
        json_name="addedInTheNextVersion",
    )
    for nested in message.nested_type:
        _grow(nested)
