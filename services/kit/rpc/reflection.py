"""Server reflection under both names: tools ask for v1 first, the library only serves v1alpha."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2

V1: Final = "grpc.reflection.v1.ServerReflection"
V1ALPHA: Final = reflection.SERVICE_NAME
_METHOD: Final = "ServerReflectionInfo"
_V1_FILE: Final = "grpc/reflection/v1/reflection.proto"


def add_to_server(server: Any, service_names: Sequence[str]) -> None:
    """Let the server list and describe these services.

    The messages of v1 are those of v1alpha, field by field, so one servicer answers both.
    """
    _describe_v1()
    servicer = reflection.aio.ReflectionServicer(
        (*service_names, V1ALPHA, V1), pool=_MethodsToo(descriptor_pool.Default())
    )
    answer = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for name in (V1ALPHA, V1):
        server.add_registered_method_handlers(name, {_METHOD: answer})


class _MethodsToo:
    """A descriptor pool that also finds the file of a method: tools ask for methods by name."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # the library's name
        """Return the file of a symbol; that of a method is the file of its service."""
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            service, _, method = symbol.rpartition(".")
            if method not in self._pool.FindServiceByName(service).methods_by_name:
                raise
            return self._pool.FindFileContainingSymbol(service)


def _describe_v1() -> None:
    """Register the v1 descriptors: their file differs from v1alpha's only in names."""
    pool = descriptor_pool.Default()
    try:
        pool.FindFileByName(_V1_FILE)
    except KeyError:
        file = descriptor_pb2.FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(file)
        file.name, file.package = _V1_FILE, V1.rpartition(".")[0]
        for message in file.message_type:
            for field in message.field:
                if field.type_name:
                    field.type_name = _renamed(field.type_name)
        for method in file.service[0].method:
            method.input_type = _renamed(method.input_type)
            method.output_type = _renamed(method.output_type)
        pool.Add(file)


def _renamed(type_name: str) -> str:
    return type_name.replace(".v1alpha.", ".v1.")
